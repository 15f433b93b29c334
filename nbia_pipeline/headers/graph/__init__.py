"""What files refer to: edges, segments and regions of one file, and where their targets are, over all collections."""
