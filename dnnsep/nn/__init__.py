"""What users of PyTorch touch: layers, functions and the operator."""
