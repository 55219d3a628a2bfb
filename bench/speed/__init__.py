"""How fast, how exact and how sparing of memory the operators are, beside plain PyTorch and their peers."""
