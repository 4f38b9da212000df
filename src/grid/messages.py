"""Messages about a batch, sent now: python -m src.grid.messages KIND BATCH …

failure BATCH RUN       its first failed run
many BATCH RUN          more than a fifth have failed
digest BATCH ROUND      the batch has ended; while runs of it continue, a later job follows

The exit code is 0 whatever an address answers: no batch fails for a message. The addresses are
those of apprise (slack://…, mailto://…, tgram://…, a hundred more). They hold passwords, so they
stand in the environment or in a file of the user's, and nothing here writes or prints one.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loguru import logger

from src.grid.folders import Batch, count_runs, open_batch
from src.grid.notices import Notices, submit_digest
from src.grid.reports import Report, describe, read_reports
from src.grid.status import count_states, row_statuses
from src.support import ROOT, UserError

VARIABLE = "EXPERIMENT_NOTIFY"  # addresses with spaces between
SHORTEST = 160  # characters: what a text message takes
MOST_GROUPS = 5  # of failures
DPI = 120


def address_file() -> Path:
    """An address a line, or another form of apprise's configuration."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "experiment-starter" / "notify"


def wants_messages() -> bool:
    """Whether there is an address. Without one, apprise is not imported; one that cannot be read
    counts as none, and a warning is logged."""
    if not os.environ.get(VARIABLE, "").strip() and not address_file().is_file():
        return False
    try:
        return bool(_servers())
    except UserError as error:
        logger.warning("no messages will be sent: {}", error)
        return False


def send(title: str, body: str, *, picture: Path | None = None, is_bad: bool) -> bool:
    """One message to each address; the picture where the service takes one. Prints what became of
    it at each service (Slack, E-Mail, …), and returns whether all took it. An address that fails
    keeps none of the others from theirs. Raises UserError where there is none, or no apprise."""
    are_delivered = True
    for server in _servers():
        has_title = server.title_maxlen > 0
        text = body if has_title else f"{title}\n{body}"
        attach = {"attach": str(picture)} if picture and server.attachment_support else {}
        try:
            is_delivered = server.notify(
                body=fit(text, max(server.body_maxlen, SHORTEST)),
                title=title[: server.title_maxlen] if has_title else "",
                notify_type="failure" if is_bad else "success",
                body_format="text",
                **attach,
            )
        except Exception:  # of a hundred services; its words may hold the address
            is_delivered = False
        took = "sent" if is_delivered else "not delivered: wrong, dead or out of reach"
        print(f"{server.service_name}: {took}")
        are_delivered = are_delivered and bool(is_delivered)
    return are_delivered


def fit(text: str, most: int) -> str:
    """The first lines that fit, and a sign that there were more."""
    if len(text) <= most:
        return text
    return text[: most - 2].rpartition("\n")[0] + "\n…" if "\n" in text[: most - 2] else text[:most]


def _servers() -> Sequence[Any]:
    try:
        import apprise
    except ImportError:
        raise UserError("notify: apprise is not installed: pip install apprise") from None
    logging.getLogger(apprise.LOGGER_NAME).setLevel(logging.CRITICAL + 1)  # it names addresses
    found = apprise.Apprise()
    from_environment = os.environ.get(VARIABLE, "").split()
    for address in from_environment:
        if not found.add(address):
            scheme = address.partition("://")[0] if "://" in address else "an address without ://"
            raise UserError(f"{VARIABLE}: apprise cannot read one of its addresses ({scheme})")
    if not from_environment and address_file().is_file():
        found.add(apprise.AppriseConfig(str(address_file())))
        if not len(found):
            raise UserError(f"{address_file()}: apprise finds no address in it")
    if not len(found):
        raise UserError(
            f"notify: no address: set {VARIABLE}, or write one into {address_file()} "
            "(slack://…, mailto://…: github.com/caronc/apprise)"
        )
    return list(found)


def digest_of(report: Report) -> tuple[str, str]:
    """(title, body) of the message about a batch: '26-11-22-x: 22 done, 2 failed', and in the body
    what matters most first, as some services cut it off."""
    counts, groups = count_states(report.statuses), report.groups
    lines = [f"{count_runs(len(report.statuses))}: {counts}"]
    if report.num_diverged:
        lines.append(f"{report.num_diverged} of those done diverged")
    lines += [f"damaged: {line}" for line in report.damage]
    for group in groups[:MOST_GROUPS]:
        lines += [f"- {group.headline}"] + [f"  {group.detail}"] * bool(group.detail)
    if len(groups) > MOST_GROUPS:
        lines.append(f"- and {len(groups) - MOST_GROUPS} more kinds of failure")
    if report.best:
        lines.append(f"best {report.ranking_text}:")
    for best in report.best:
        values = describe(best.values(report.keys))
        lines.append(f"- {best.value_text} ({best.seeds_text}) {values}".rstrip())
    if report.cost_text:
        lines.append(f"cost: {report.cost_text}")
    if kinds := {group.only for group in groups}:
        lines.append(report.retry_command(kinds.pop() if len(kinds) == 1 else None))
    lines.append(f"python report.py {report.batch.path}")
    return f"{report.batch.path.name}: {counts or 'no runs'}", "\n".join(lines)


@contextmanager
def picture_of(report: Report) -> Iterator[Path | None]:
    """Learning curves of the best settings, as a PNG; None where nothing can be drawn."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{report.batch.path.name}.png"
        try:
            if report.columns:
                from src.analysis import best_settings, learning_curves, read_experiments

                df = read_experiments(report.batch.path, only_done=True)  # no legend of failures
                figure = learning_curves(best_settings(df, report.columns[0]), None)
                figure.savefig(path, dpi=DPI, bbox_inches="tight")
        except UserError:  # too little to draw
            pass
        except Exception:  # the words are to arrive in any case
            traceback.print_exc(file=sys.stdout)
        yield path if path.exists() else None


def send_report(report: Report, *, is_bad: bool = False) -> bool:
    with picture_of(report) as picture:
        return send(*digest_of(report), picture=picture, is_bad=is_bad)


def notify(batch: str | None) -> int:
    """Send the digest of this batch, or without one a few words to check the addresses; the exit
    code: 1 where an address did not take it."""
    if batch is None:
        words = "This is where messages about your experiments will come."
        return int(not send("Experiment Starter", words, is_bad=False))
    (report,), _ = read_reports([batch])
    return int(not send_report(report))


def main(arguments: Sequence[str] | None = None) -> int:
    """The process of one message: its command line stands at the top of this file."""
    kind, folder, argument = sys.argv[1:] if arguments is None else arguments
    batch = Path(folder)
    print(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {kind} {argument} ---")
    try:
        if kind == "digest":
            send_digest(batch, argument)
        else:
            send_failure(batch, argument, is_many=kind == "many")
    except UserError as error:
        print(error)
    except Exception:
        traceback.print_exc(file=sys.stdout)  # what sends keeps addresses out of its errors
    return 0


def send_failure(batch: Path, row_name: str, *, is_many: bool) -> None:
    """Of a run that has just failed."""
    notices, rows = Notices(batch), open_batch(batch).rows
    row = next(row for row in rows if row.name == row_name)
    (status,) = row_statuses(Batch(batch, [row]), None)
    number = max(1, notices.num_failed)
    which = f"{number} of {len(rows)} runs have failed" if is_many else "a first run has failed"
    body = f"{row_name}: {status.cause or 'see its log'}\n{row.log}\npython report.py {batch}"
    if notices.take_from_budget():
        send(f"{batch.name}: {which}", body, is_bad=True)


def send_digest(batch: Path, of_round: str) -> None:
    """Of all runs, when none runs or waits any more, or nobody could look again."""
    notices = Notices(batch)
    if not batch.is_dir() or notices.round != of_round:
        print("not sent: the batch was deleted, or submitted again")
        return
    (report,), _ = read_reports([batch])
    going = [status for status in report.statuses if status.state in ("running", "queued")]
    # follow-ups of runs, or those of other submissions
    jobs = list(dict.fromkeys(status.job.partition("_")[0] for status in going if status.job))
    if submit_digest(batch, jobs, None, ROOT, of_round):
        print("runs continue: another job follows")
    elif notices.may_send_digest(of_round) and notices.take_from_budget():
        send_report(report, is_bad=report.counts["done"] < len(report.statuses))


if __name__ == "__main__":
    sys.exit(main())
