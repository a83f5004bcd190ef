"""The nets, the recipes that train them and the checkpoint files that hold them."""
