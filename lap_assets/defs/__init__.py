"""The only place that imports dagster: partitions, resources, checks, assets, and the driver of `lap run`."""
