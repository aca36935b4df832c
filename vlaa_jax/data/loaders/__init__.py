"""Loaders over Grain with exact state."""
