"""Assets of one's own beside those of nbia_pipeline."""
