"""The content of an archive: series rows and their files."""
