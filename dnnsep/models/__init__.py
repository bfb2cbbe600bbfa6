"""Loads whole models by name, lists their layers, and runs them on other engines."""
