"""Make the index of a data set: python data_split.py DATA"""

from __future__ import annotations

import sys

from face_gender.data.__main__ import main

if __name__ == "__main__":
    sys.exit(main(name="data_split.py"))
