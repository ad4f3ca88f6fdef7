"""Bytes on disk: paths, files, publishing, reading, checking. Knows neither dagster nor the ledger."""
