"""trackio, on this machine: `trackio show` draws what all runs have told its database.

The database is trackio's own, in TRACKIO_DIR, else in the cache of Hugging Face.
"""

from collections.abc import Mapping
from pathlib import Path

from src.logging.trackers.tracked import Tracked


def has_credentials() -> bool:
    """Its database is on this machine."""
    return True


class Trackio:
    def __init__(self, run: Tracked, archive: Path, *, is_online: bool) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name}-{run.id[:6]}"  # a folder of the same name may come again
        self.run = trackio.init(
            project=run.project,
            name=name,
            group=run.group,
            config=run.config | {"commit": run.commit, "tags": list(run.tags)},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        last = SQLiteStorage.get_last_step(run.project, name)
        self.known = self.step = -1 if last is None else last

    def last_step(self, confirmed: int) -> int:
        return self.known

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)
        self.step = step

    def flush(self) -> None:
        """It writes by itself, several times a second."""

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        import trackio

        images = {name: trackio.Image(str(path)) for name, path in pictures.items()}
        self.run.log({"outcome": outcome, "reason": reason, **images}, step=self.step)
        self.run.finish()
