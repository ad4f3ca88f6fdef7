"""Scheduling: one pure decision function over a snapshot of the ledger."""
