"""What must not move: one file each."""
