"""The ways of multiplying a tile by a panel of weights, one file each."""
