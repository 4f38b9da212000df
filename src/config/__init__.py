"""The configuration of a run: keys from YAML and the command line, checked, filled in, saved.

config.py              Config, all keys of src/keys.py in one frozen dataclass: load, check, save
command_line.py        key=value for train.py, and commands that would work instead
yaml_files.py          YAML as people mean it: 1e-3 is a number; bounded in size and depth
expressions.py         the evaluator of strings in YAML such as "2.0 ** np.arange(3)"
import_path.py         module.path:function in YAML
defaults.yaml          the defaults history: each key with its default and since which version
"""

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
    from src.config.expressions import evaluate, is_expression
    from src.config.import_path import import_function, is_import_path
    from src.config.yaml_files import read_yaml, read_yaml_file, write_yaml
else:
    __getattr__ = lazy_names(__name__)
