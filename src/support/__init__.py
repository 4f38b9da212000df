"""What every folder uses, and nothing that knows of machine learning.

errors.py builds what a user reads of a mistake, in one line: `raise bad_value("batch_size", 0, "a
number from 1 up")`, `raise unknown_name(key, name, known)`, or `pick(table, name, key)` where the
names are the keys of a table. A UserError ends a program with exit code 2 and without a traceback.

files.py has the folder of the project and a way to write a file that is whole or not there.

Two modules are used under their own names. `processes`: when a process started, running programs
that end together and get our signals, and the memory and cores that this process may use.
`random_state`: torch's, numpy's and Python's global generators are seeded, saved and isolated
together. It imports torch; the others import no more than the standard library.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.support import processes, random_state
    from src.support.errors import (
        OneLineParser,  # an argparse.ArgumentParser that raises UserError
        UserError,  # a mistake of the user
        bad_value,  # the error for a value that a key does not take
        closest,  # the known name that was probably meant
        one_line,  # any text or exception as one printable line
        pick,  # an entry of a table, or the error for an unknown name
        short_repr,  # repr, cut where it is long
        unknown_name,  # the error for a name that does not exist
    )
    from src.support.files import (
        ROOT,  # the folder of train.py
        write_atomically,  # write a file that readers see whole
    )
else:
    __getattr__ = lazy_names(__name__)
