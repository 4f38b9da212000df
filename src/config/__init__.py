"""The configuration of a run: keys from YAML and the command line, checked, filled in, saved."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.config.command_line import CommandLine, given
    from src.config.config import (
        INFERRED_KEYS,
        KEYS,
        MAX_ALLOWED_LOSS,
        Config,
        draw_missing,
        load_config,
        make_config,
        parse_overrides,
        read_saved_config,
        save_config,
    )
    from src.config.expressions import ExpressionError, evaluate, is_expression
    from src.config.import_path import import_function, is_import_path
    from src.config.yaml_files import read_yaml, read_yaml_file, write_yaml
else:
    __getattr__ = lazy_names(__name__)
