"""The contenders of `benchmarks/grpo_step.py`, and what is counted and timed of them."""
