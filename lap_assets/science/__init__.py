"""Pure algorithms, one module per effect: arrays and tables in, arrays and tables out. No files, clock or environment."""
