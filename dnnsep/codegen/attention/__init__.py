"""Attention kernels: softmax(q kᵀ scale + mask) v for each image and head.

``definition.py`` says what is computed, ``special.py`` what decides a kernel's code, ``step.py`` is
a kernel as a step of a program. ``packing.py``, ``scores.py`` and ``code.py`` are the generated
code: what a head's keys and values are laid out by, the rows of a softmax, and a share of the work.
"""
