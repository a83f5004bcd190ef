"""An index and a recipe -> one checkpoint and one report per epoch."""
