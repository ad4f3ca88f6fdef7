"""The ledger: one relational database that holds what is to be processed and what became of it. All SQL is here."""
