"""Benchmarks: figures with targets, never asserted in tests. `make bench [ONLY=name]`."""
