"""Weights & Biases. Offline runs lie in trackers/wandb, as `wandb sync` reads them as well."""

import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

from src.logging.trackers.tracked import Tracked

SECONDS_TO_BEGIN = 60.0


def has_credentials() -> bool:
    """A key in the environment, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


class Wandb:
    def __init__(self, run: Tracked, archive: Path, *, is_online: bool) -> None:
        import wandb

        self.run = wandb.init(
            mode="online" if is_online else "offline",
            id=run.id,
            resume="allow",
            project=run.project,
            name=run.name,
            group=run.group,
            tags=list(run.tags),
            config=run.config | {"commit": run.commit},
            dir=archive,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=SECONDS_TO_BEGIN,
                # Of our process, which computes nothing; the run's own are columns system/…
                x_disable_stats=True,
                disable_git=True,
                save_code=False,
            ),
        )

    def last_step(self, confirmed: int) -> int:
        return self.run.starting_step - 1  # the server says from where it goes on

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step, commit=True)

    def flush(self) -> None:
        """Its own process sends, and the server knows how far that came."""

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        import wandb

        self.run.summary.update({"outcome": outcome, "reason": reason})
        if pictures:  # beside the last row: another step would be another row
            images = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            self.run.summary.update(images)
        self.run.finish(exit_code=1 if outcome in ("failed", "running") else 0)
