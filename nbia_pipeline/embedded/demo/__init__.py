"""The catalogs that are shipped: the demo, and the index of the Imaging Data Commons."""
