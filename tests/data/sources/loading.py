"""Loading data for tests of the families."""

from pathlib import Path

from src.config import make_config
from src.data.registry import family_of
from src.data.source import Source
from src.data.splits import Data, Preprocessing


def load_family(
    dataset: str, data_dir: Path, splits_map: dict, preprocessing: Preprocessing | None, **keys
) -> Data:
    """What the family gives, without data_download unless keys say so."""
    of_all = {"dataset": dataset, "data_dir": str(data_dir), "data_download": False}
    config = make_config(of_all | keys)
    family, source = family_of(Source(dataset, splits_map, config.data_version))
    family.check(config, source)
    return family.build(config, source, preprocessing or Preprocessing())
