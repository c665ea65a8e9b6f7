"""How a layer's weights are rounded. One file is one quantizer; its file name is its name."""
