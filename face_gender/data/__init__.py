"""A folder or a .zip of pictures -> an index -> batches."""
