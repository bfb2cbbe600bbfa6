"""Rewrites whole models: traces, matches layers, packs them, links them, and reports."""
