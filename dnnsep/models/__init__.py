"""Whole models: by name, their layers, and the engines that they are measured on."""
