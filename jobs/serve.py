"""The same as `raydistal serve ...`, for `ray job submit --working-dir . -- python jobs/serve.py ...`."""

import os
import sys

# Python puts this folder first on the path, where select.py would stand in for the standard library's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from raydistal.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
