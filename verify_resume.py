"""Certify that a killed run ends as one that was never killed: python verify_resume.py cfg.yaml

Runs the experiment straight through, then again under kill -9, SIGTERM and SIGUSR1 at random
moments, and compares what both leave, byte for byte. Of a job file it takes the runs that can be
stacked: each alone, and those that may share a stack together and killed. On a GPU some of torch's
operations sum in no fixed order: where two straight runs differ, this cannot hold either.
"""

import random
import signal
import sys

from src.runtime import NotCertified, certify
from src.support import OneLineParser, UserError, bad_value


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 where the runs differ or nothing is shown,
    2 for a mistake of the user's, 130 for Ctrl-C."""
    parser = OneLineParser(description="Certify that a killed run ends as one never killed.")
    add = parser.add_argument
    add("config", help="YAML file with keys of src/keys.py, or a job file")
    add("overrides", nargs="*", metavar="key=value", help="base_lr=0.1 …")
    add("--kills", type=int, default=20, metavar="N", help="how often it is killed (20)")
    add("--seed", type=int, metavar="N", help="of the moments; without it, others each time")
    add("--output", metavar="FOLDER", help="keep both runs there; else they are removed")
    try:
        given = parser.parse_intermixed_args(arguments)
        if given.kills < 1:
            raise bad_value("--kills", given.kills, "a whole number from 1 up")
        seed = random.randrange(2**32) if given.seed is None else given.seed
        print(certify(given.config, given.overrides, given.kills, seed=seed, output=given.output))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except NotCertified as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run ends with us
    sys.exit(main())
