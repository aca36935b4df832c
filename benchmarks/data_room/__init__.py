"""The measurements of `benchmarks/data.py`, one module for each of its verbs."""
