"""Local attention seen: cost, equivariance, attention weights, shifts and receptive fields."""
