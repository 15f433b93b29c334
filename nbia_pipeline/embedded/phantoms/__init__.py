"""DICOM files made on the fly: anatomy, pixels, annotations."""
