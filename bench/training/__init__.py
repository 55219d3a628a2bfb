"""How well networks generalise that are trained with each loss."""
