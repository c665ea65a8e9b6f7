"""Low-bit models: how weights are rounded, and what the rounding cost."""
