"""The machine that a process runs on: its caches, its CPUs, its memory, the user's cache files."""
