"""A preview of a collection: one picture of some of its series; knows the lake, and nothing of HTTP or Dagster."""
