"""The name by which scripts of packed jobs ask for another attempt: it stays, see attempt.py."""

import sys

from src.grid.attempt import request_for_shared_job

if __name__ == "__main__":
    sys.exit(request_for_shared_job(sys.argv[1:]))
