"""The mixed reward: five verifiers and one of one's own, no array framework."""
