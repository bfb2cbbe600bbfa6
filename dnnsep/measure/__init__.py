"""Measures the machine and calls on it: roofs, controls, statistics, cache states, warnings."""
