"""Tests of lap_assets; the folders mirror the package."""
