"""Kernels that take a tensor apart by windows and strides: pooling, resizing, copies.

``pooling.py``, ``resizing.py`` and ``copying.py`` say what is computed and how big the result is.
``poolcode.py``, ``resizecode.py`` and ``copycode.py`` are the generated code, and ``poolstep.py``,
``resizestep.py`` and ``copystep.py`` have the kernels as steps of a program. ``task.py`` has what
all their tasks begin with.
"""
