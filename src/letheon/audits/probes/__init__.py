"""What is asked of a model: one file a probe, each giving some columns of the matrix."""
