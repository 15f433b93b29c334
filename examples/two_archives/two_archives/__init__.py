"""Two NBIA archives in one code location of Dagster."""
