"""What one asset does for one partition: load, call pure functions, publish. No dagster here."""
