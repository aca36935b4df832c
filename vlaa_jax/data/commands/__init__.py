"""The commands of `python -m vlaa_jax.data`."""
