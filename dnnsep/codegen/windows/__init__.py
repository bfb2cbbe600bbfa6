"""Kernels that look at windows of images without weights: pooling."""
