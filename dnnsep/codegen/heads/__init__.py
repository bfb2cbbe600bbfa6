"""Attention: softmax(q k' scale + biases) v of many heads at once.

``special.py`` says what decides a kernel's code and what is right, ``step.py`` has the kernel as a
step of a program. A part (``part.py``) takes blocks of query rows; for each head that it meets it
packs keys and values (``copy.py``), then of each block of rows come all scores (``scores.py``),
their softmax (``softmax.py``) and the product with the values (``values.py``).
"""
