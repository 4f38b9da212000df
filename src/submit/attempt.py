"""The name by which submit scripts call src/grid/attempt.py: `-m src.submit.attempt`.

It stays: one script starts the runs of new batches and those of older ones, each with the code
that was frozen for it.
"""

import sys

from src.grid.attempt import main

if __name__ == "__main__":
    sys.exit(main())
