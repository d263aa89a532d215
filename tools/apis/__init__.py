"""Stateful mock APIs: one domain a file, pure functions over frozen, copy-on-write state."""
