"""Train and run a classifier that tells male from female face pictures.

Importing the package does no work and pulls in no library; import the module that you need:
``files``, ``images``, ``index``, ``preprocessing``, ``models``, ``recipes``, ``dataset``,
``checkpoint``, ``metrics``, ``training``, ``inference``, ``plots``.
"""

__version__ = "0.1.0"
