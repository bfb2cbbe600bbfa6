"""Row-wise kernels: what a network computes between its convolutions, on tensors of pixels x
channels.

``expression.py`` says what is computed, ``operators.py`` what each operator is, ``schedule.py`` in
which passes over a row; ``step.py`` has the kernels as steps of a program, ``overpixels.py`` those
that reduce an image's pixels to one row.
"""
