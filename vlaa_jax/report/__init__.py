"""Run viewer (not built yet)."""
