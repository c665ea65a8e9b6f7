"""What a quantized model is written as: one file each."""
