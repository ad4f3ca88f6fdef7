"""Tests of `lap`."""
