"""vlaa_jax: VLAA-Thinker in JAX."""

__version__ = "0.1.0"
