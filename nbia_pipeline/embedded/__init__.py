"""The embedded archive: a real NBIA server over HTTP, with real DICOM files, for demos, tests and benchmarks."""
