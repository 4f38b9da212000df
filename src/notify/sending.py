"""The name by which batches of all ages send messages: see src/grid/messages.py."""

import sys

from src.grid.messages import main

if __name__ == "__main__":
    sys.exit(main())
