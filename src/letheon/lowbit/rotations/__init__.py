"""How a model is rotated before its weights are rounded. One file is one rotation; its file name is its name."""
