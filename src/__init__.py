"""The template. `from src import Config` is what notebooks of older copies begin with."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.config.config import Config

__all__ = ["Config"]


def __getattr__(name: str) -> Any:
    """Config is imported when it is asked for: pydantic and numpy take half a second."""
    if name == "Config":
        from src.config.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
