"""Tables of the images that are damaged or missing, rebuilt from the files and the archive's digests."""
