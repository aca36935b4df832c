"""A miniature of the six benchmarks, drawn by code, and a scripted judge: nothing to download."""
