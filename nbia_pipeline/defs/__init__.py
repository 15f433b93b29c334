"""The Dagster definitions: assets, checks, jobs, sensors, schedules and resources."""
