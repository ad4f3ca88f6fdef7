"""Pure algorithms: arrays and tables in, arrays and tables out, one module per effect. No file, clock, environment."""
