"""How two gradients become one step: one file each."""
