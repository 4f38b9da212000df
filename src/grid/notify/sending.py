"""The process that sends one message about a batch: python -m src.grid.notify.sending KIND BATCH …

failure BATCH ROW       its first failed row
many BATCH ROW          more than a fifth have failed
digest BATCH ROUND      the batch has ended; where rows of it go on, a later job looks again

Its exit code is 0 whatever an address says: no batch fails for a message.
"""

import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from src.grid.folders import Batch, open_batch
from src.grid.notify.address import send
from src.grid.notify.digest import body_of, picture_of, report_of, title_of
from src.grid.notify.digest_job import look_again
from src.grid.notify.notices import Notices
from src.grid.status import row_statuses
from src.support import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    kind, folder, *rest = sys.argv[1:] if arguments is None else arguments
    batch = Path(folder)
    print(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {kind} {' '.join(rest)} ---")
    try:
        if kind == "digest":
            tell_digest(batch, rest[0])
        else:
            tell_failure(batch, rest[0], is_many=kind == "many")
    except UserError as error:
        print(error)
    except Exception:
        traceback.print_exc(file=sys.stdout)  # what sends keeps addresses out of its errors
    return 0


def tell_failure(batch: Path, row_name: str, *, is_many: bool) -> None:
    """Of a row that has just failed."""
    notices = Notices(batch)
    rows = open_batch(batch).rows
    row = next(row for row in rows if row.name == row_name)
    (status,) = row_statuses(Batch(batch, [row]), None)
    number = max(1, notices.num_failed)
    which = f"{number} of {len(rows)} runs have failed" if is_many else "a first run has failed"
    log = row.folder / "job.log"
    body = f"{row_name}: {status.cause or 'see its log'}\n{log}\npython report.py {batch}"
    tell(notices, f"{batch.name}: {which}", body, is_bad=True)


def tell_digest(batch: Path, of_round: str) -> None:
    """Of all rows, when none runs or waits any more, or nobody could look again."""
    notices = Notices(batch)
    if not batch.is_dir() or notices.round != of_round:
        print("not sent: the batch was deleted, or submitted again")
        return
    report = report_of(batch)
    if report.counts["running"] + report.counts["queued"] and look_again(report, of_round):
        print("rows go on: another job looks again")
        return
    if not notices.may_tell_digest(of_round):
        return
    is_bad = report.counts["done"] < len(report.statuses)
    with picture_of(report) as picture:
        tell(notices, title_of(report), body_of(report), picture=picture, is_bad=is_bad)


def tell(
    notices: Notices, title: str, body: str, *, is_bad: bool, picture: Path | None = None
) -> None:
    if not notices.take_of_budget():
        print("not sent: this batch has told enough")
        return
    for delivery in send(title, body, picture=picture, is_bad=is_bad):
        print(f"{delivery.service}: {'sent' if delivery.is_delivered else 'not delivered'}")


if __name__ == "__main__":
    sys.exit(main())
