"""From the archive to the lake: plan, fetch, verify, publish."""
