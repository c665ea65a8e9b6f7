"""The low-bit forward pass: where an architecture keeps what, how it is rotated, and what flows through it rounded."""
