"""The files of deploy/: each is loaded or run as a person would load or run it."""
