"""One file: its elements as JSON and columns, by our own walk over its bytes or by pydicom."""
