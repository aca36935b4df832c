"""Settings: for every task a frozen dataclass of groups that check themselves."""
