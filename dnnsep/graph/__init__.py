"""Whole models: captured, matched, linked into programs, and reported on."""
