"""Fetch and prepare all that runs need, once: python prepare.py cfg.yaml|jobs/x.yaml [key=value …]

Every data set and every set of pretrained weights of a configuration or of a whole grid, on a
machine that has a network, so that jobs start with all at hand. Without it the first of them
fetches and the others wait.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from time import perf_counter

from loguru import logger

from src.config import Config, load_config, make_config, read_yaml_file
from src.data import Data, build_data
from src.grid import read_job
from src.keys import DataKeys, ModelKeys
from src.models import build_model, check_model, model_preprocessing
from src.support import OneLineParser, UserError, one_line

OF_DATA = [field.name for field in fields(DataKeys)] + ["model_input_shape", "loss"]
OF_MODEL = [field.name for field in fields(ModelKeys)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 where something is missing, 130 for Ctrl-C."""
    parser = OneLineParser(description="Fetch and prepare all that runs need.")
    parser.add_argument("file", help="YAML file: a configuration, or a job file with a grid")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all: data_dir=…")
    with suppress(ValueError):
        logger.remove(0)  # loguru's own, which prints everything
    messages = logger.add(lambda line: print(f"  {line}", end=""), format="{message}")
    try:
        options = parser.parse_args(arguments)
        return prepare(configurations(options.file, options.overrides))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    finally:
        logger.remove(messages)


def configurations(path: str, overrides: Sequence[str]) -> list[Config]:
    """One configuration, or of a grid one for each pair of data and model; data_download is on."""
    content = read_yaml_file(path)
    if not isinstance(content, dict) or "parameters" not in content:
        configs = [load_config(path, overrides)]
    else:
        configs = [make_config(values, overrides) for values in read_job(path).runs()]
    found: dict[str, Config] = {}
    for config in configs:
        values = [getattr(config, key) for key in [*OF_DATA, *OF_MODEL]]
        found.setdefault(repr(values), replace(config, data_download=True, seed_model=0))
    return list(found.values())


def prepare(needs: Sequence[Config]) -> int:
    """Fetch what each configuration needs, also after a failure of another; the exit code."""
    failures: dict[str, None] = {}
    # The data of the last configuration, or why there are none, for all models that would use
    # them; one data set at a time, as they may fill the memory.
    kept: tuple[str, Data | UserError] | None = None
    for number, config in enumerate(needs, 1):
        print(f"{number}/{len(needs)} {config.dataset}, {config.model}", flush=True)
        started = perf_counter()
        try:
            check_model(config)
            preprocessing = model_preprocessing(config)
            key = repr(([getattr(config, key) for key in OF_DATA], preprocessing))
            if kept is None or kept[0] != key:
                kept = None
                try:
                    kept = key, build_data(config, preprocessing)
                except UserError as error:
                    kept = key, error
            if isinstance(kept[1], UserError):
                raise kept[1]
            print(f"  {found_in(kept[1], config)}, {perf_counter() - started:.1f} s", flush=True)
        except Exception as error:  # a fork's own function may raise what it likes
            print("  failed, see below", flush=True)
            known = isinstance(error, UserError)
            failures[str(error) if known else f"{config.dataset}: {one_line(error)}"] = None
    if failures:
        print("\n".join(failures), file=sys.stderr)
        return 2
    print("everything is there")
    return 0


def found_in(data: Data, config: Config) -> str:
    """One line: the sizes of the splits, and "weights" where there are some. It fetches them."""
    found = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    if config.model_pretrained or config.model_weights is not None:
        n_classes, names = data.n_classes, data.class_names
        if config.model_head_init == "zero_shot" and names:  # two are enough to fetch all
            config, n_classes, names = replace(config, model_output_dim=None), 2, names[:2]
        build_model(config, data.input_shape, n_classes, names)
        found += ", weights"
    return found


if __name__ == "__main__":
    sys.exit(main())
