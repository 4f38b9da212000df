"""The name by which digest jobs of older batches send messages: see src/grid/messages.py."""

import sys

from src.grid.messages import main

if __name__ == "__main__":
    sys.exit(main())
