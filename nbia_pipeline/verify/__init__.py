"""Check what the lake holds: read files again, compare, and fetch damaged series again."""
