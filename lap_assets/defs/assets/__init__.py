"""The assets, one module per part of the chain; each body calls one function."""
