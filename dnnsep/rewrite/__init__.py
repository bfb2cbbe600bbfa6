"""Rewrites whole models: packed layers in the place of their convolutions."""
