"""Where the faces of a picture are, and how a face is turned to one template."""
