"""train.py --list KIND [PATTERN]: the names that a key of the configuration takes."""

import re
from collections.abc import Callable, Iterable

from src.data import dataset_names
from src.losses import LOSSES
from src.metrics import METRICS
from src.models import model_names
from src.optim import average_names, optimizer_names, schedule_names
from src.support import bad_value, closest, pick

# kind -> the key that takes such a name, and all of them
NAMES: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "models": ("model", model_names),
    "datasets": ("dataset", dataset_names),
    "optimizers": ("optim_alg", optimizer_names),
    "schedules": ("lr_schedule", schedule_names),
    "averages": ("averaging", average_names),
    "losses": ("loss", lambda: LOSSES),
    "metrics": ("metrics", lambda: METRICS),
}


def describe_names(kind: str, pattern: str = "") -> str:
    """A name a line, of those in which the regular expression is found. Raises UserError."""
    key, names = pick(NAMES, kind, "--list")
    try:
        is_meant = re.compile(pattern, re.IGNORECASE).search
    except re.error as error:
        raise bad_value("--list", pattern, f"a regular expression ({error})") from None
    known = list(names())
    if found := [name for name in known if is_meant(name)]:
        return "\n".join(found)
    near = closest(pattern, known)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"no name for {key} matches {pattern!r}{hint} (also module.path:function, your own)"
