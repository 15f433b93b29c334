"""What can be done to a running archive, in process or over its control port."""
