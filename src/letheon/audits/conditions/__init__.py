"""What is done to a model before it is asked: one file a condition, each undone to the bit."""
