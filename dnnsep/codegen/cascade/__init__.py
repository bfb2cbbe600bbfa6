"""Layers that one thread runs band by band, so that what is between them stays in its caches."""
