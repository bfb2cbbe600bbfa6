"""Row-wise kernels: what a network computes between its convolutions, on tensors of pixels x
channels, channels-last.

``expression.py`` says what is computed, ``operators.py`` what each operator is; ``special.py`` has
what decides a kernel's code, ``step.py`` the kernels as steps of a program. ``schedule.py``,
``row.py`` and ``rows.py`` are the code of an expression of each row, ``columns.py`` that of a
reduction of an image's pixels.
"""
