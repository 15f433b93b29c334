"""Tables of the images that are damaged or missing, made again from the files and the archive's digests."""
