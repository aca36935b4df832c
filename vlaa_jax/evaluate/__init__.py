"""Benchmarks (not built yet)."""
