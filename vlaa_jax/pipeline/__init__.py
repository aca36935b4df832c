"""Data construction (not built yet)."""
