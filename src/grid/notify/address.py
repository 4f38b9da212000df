"""Where messages go: apprise's addresses (slack://…, mailto://…, tgram://…, a hundred more).

They hold passwords, so they stand in the environment or in a file of the user's, and nothing here
writes or prints one.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.support import UserError

VARIABLE = "EXPERIMENT_NOTIFY"  # addresses with spaces between
SHORTEST = 160  # characters: what a text message takes


def address_file() -> Path:
    """An address a line, or another form of apprise's configuration."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "experiment-starter" / "notify"


def has_address() -> bool:
    """Whether anybody wants to be told; apprise is not imported for that."""
    return bool(os.environ.get(VARIABLE, "").strip()) or address_file().is_file()


def unreadable() -> str | None:
    """Why nothing could be sent to the addresses; None: they can be read, which is all it asks."""
    try:
        _servers()
    except UserError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Delivery:
    """What became of a message at one address."""

    service: str  # Slack, E-Mail, …: not the address
    is_delivered: bool


def send(title: str, body: str, *, picture: Path | None = None, is_bad: bool) -> list[Delivery]:
    """One message to each address; the picture where the service takes one. An address that fails
    keeps none of the others from theirs. Raises UserError where there is none, or no apprise."""
    kind = "failure" if is_bad else "success"
    deliveries = []
    for server in _servers():
        title_length, body_length = server.title_maxlen, server.body_maxlen
        text = body if title_length else f"{title}\n{body}"
        options: dict[str, Any] = {}
        if picture and server.attachment_support:
            options["attach"] = str(picture)
        try:
            is_delivered = server.notify(
                body=fitted(text, max(body_length, SHORTEST)),
                title=title[:title_length] if title_length else "",
                notify_type=kind,
                body_format="text",
                **options,
            )
        except Exception:  # of a hundred services; its words may hold the address
            is_delivered = False
        deliveries.append(Delivery(str(server.service_name), bool(is_delivered)))
    return deliveries


def fitted(text: str, most: int) -> str:
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
