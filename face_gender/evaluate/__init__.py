"""A checkpoint and one split of an index -> predictions, metrics and figures."""
