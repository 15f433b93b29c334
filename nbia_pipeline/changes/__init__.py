"""What changed in the archive: listings compared with what is known, the feed of changes, the cursor of the sensor."""
