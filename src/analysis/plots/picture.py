"""A figure that notebooks show; imported when the first picture is drawn."""

import io
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):
    """Made without pyplot: needs no window, is not kept alive, and is shown once, as a value."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        return picture.getvalue()


def new_picture(width: float, height: float) -> Any:
    """width, height: inches. Letters are legible where it is shown 80 mm wide."""
    return Picture(figsize=(width, height), dpi=110, layout="constrained")
