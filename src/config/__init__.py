"""The configuration of a run: keys from YAML and the command line, checked, filled in, saved.

The keys themselves are declared in src/keys.py. A YAML file is read by yaml_files.py, overrides of
the command line (command_line.py) come on top, and config.py makes the Config: it checks types and
contradictions and says what is wrong in one line a key. What is null is drawn or inferred by the
run, which saves two of them: spec.yaml as requested, config.yaml as resolved.

config.py         Config: make, load, check, draw what is missing, save
key_notes.py      what keys.py says of each key, for `train.py --keys`
completion.py     keys and values for completion.sh
command_line.py   the arguments of train.py, and commands that would work instead
yaml_files.py     YAML as people mean it: 1e-3 is a number; bounded in size and depth
expressions.py    the evaluator of texts in YAML such as "2.0 ** np.arange(3)"
import_path.py    module.path:function in YAML
defaults.yaml     the defaults history: each key with its default and since which version; a test
                  compares them, as files of earlier experiments leave keys out
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.config.command_line import CommandLine  # of train.py; a command for another folder
    from src.config.config import (
        KEYS,  # name -> dataclass field
        Config,  # draw_missing, save, read
        load_config,  # from a YAML file and key=value
        make_config,  # from a mapping and key=value
    )
    from src.config.expressions import (
        evaluate,  # the value of a text
        is_expression,  # whether it is meant to be computed
    )
    from src.config.import_path import (
        import_function,  # of module.path:function
        is_import_path,
    )
    from src.config.yaml_files import (
        read_yaml,  # from a text
        read_yaml_file,
        write_yaml,  # to a text
    )
else:
    __getattr__ = lazy_names(__name__)
