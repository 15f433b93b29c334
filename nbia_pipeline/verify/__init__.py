"""Check what is in the lake: read files again, compare, and fetch damaged series again."""
