"""The six leaderboard benchmarks: generation, verdicts like VLMEvalKit's, and statistics.

Nothing but ``own_engine`` imports jax, and only when that engine is asked for.
"""
