"""Mesh and sharding rules: where arrays live."""
