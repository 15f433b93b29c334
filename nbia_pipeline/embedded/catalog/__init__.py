"""What an archive holds: rows of series and their files."""
