"""A checkpoint and a folder or .zip of pictures -> one label per picture."""
