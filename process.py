"""Classify face pictures: python process.py FOLDER"""

from __future__ import annotations

from face_gender.console import exit_on_signal, exit_with

if __name__ == "__main__":
    # Before the imports that take a while.
    exit_on_signal("process.py: interrupted, nothing was written.")
    from face_gender.classify.__main__ import main

    exit_with(main(name="process.py"))
