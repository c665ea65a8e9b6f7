"""Which weights may move: one file each."""
