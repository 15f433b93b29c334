"""The engine: plan, download, verify and commit the images of a collection; joins archive and lake, without Dagster."""
