"""Tests of `survey`."""
