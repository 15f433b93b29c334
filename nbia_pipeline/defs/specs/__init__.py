"""What Dagster is told about each asset: its spec, what a user changes in it, and when it is requested by itself."""
