"""Tests of `defs`."""
