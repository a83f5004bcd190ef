"""Make the index of a data set: python data_split.py DATA"""

from __future__ import annotations

from face_gender.console import exit_on_signal, exit_with

if __name__ == "__main__":
    # Before the imports that take a while.
    exit_on_signal("data_split.py: interrupted, nothing was written.")
    from face_gender.data.__main__ import main

    exit_with(main(name="data_split.py"))
