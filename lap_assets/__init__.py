"""lap_assets: a data platform for wide-field imaging surveys, on Dagster.

The rooms of the house are described in the README; nothing is imported here, so that `import lap_assets` costs nothing.
"""

__version__ = "0.1.0"
