"""The name by which submit scripts call src/grid/slurm/attempt.py: `-m src.submit.attempt`.

It stays: one script starts the rows of new batches and those of older ones, each with the code
that was frozen for it.
"""

import sys

from src.grid.slurm.attempt import main

if __name__ == "__main__":
    sys.exit(main())
