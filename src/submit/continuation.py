"""The name by which scripts of batches call src/grid/slurm/requeue.py: it stays, see attempt.py."""

import sys

from src.grid.slurm.requeue import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
