"""What is pushed away, and how far: one file each."""
