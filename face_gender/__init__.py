"""Train and run a classifier that tells male from female face pictures.

Importing the package does no work and pulls in no library; import the module that you need:
``files``, ``images``, ``index``, ``preprocessing``, ``models``, ``recipes``, ``devices``,
``dataset``, ``checkpoint``, ``metrics``, ``training``, ``evaluation``, ``inference``, ``plots``,
``audit``.
"""

__version__ = "0.1.0"

# The one place that numbers the classes: label 0 is male, 1 is female.
CLASSES = ("male", "female")

# Here, so that a command line can be checked without importing torch.
RECIPE_NAMES = ("resnet18", "resnet50", "compact_cnn", "dropout_cnn", "resnet18_tuned")
