"""completion.sh in real shells, as a person types."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from src.config.completion import offers
from src.config.config import KEYS
from src.support import ROOT
from tests.waiting import wait_until

SHELLS = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}
TYPED = {
    "python train.py a.yaml base_": "python train.py a.yaml base_lr=",
    "python train.py a.yaml precision=b": "python train.py a.yaml precision=bf16",
    "python train.py test_cfg_dig": "python train.py test_cfg_digits_linear.yaml",
    "python train.py --list opt": "python train.py --list optimizers",
    "python submit_multiple.py a.yaml -s loc": "python submit_multiple.py a.yaml -s local",
    "python submit_multiple.py a.yaml --dr": "python submit_multiple.py a.yaml --dry-run",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_keys_values_files_and_options(shell):
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    pid, terminal = pty.fork()
    if not pid:
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ |= {"PS1": "$ ", "TERM": "dumb"}
        os.chdir(ROOT)
        os.execvp(shell, SHELLS[shell])
    os.set_blocking(terminal, False)
    shown = ""

    def is_shown(text: str) -> bool:
        nonlocal shown
        with suppress(BlockingIOError):
            shown += os.read(terminal, 65536).decode(errors="replace")
        return text in shown

    try:
        os.write(terminal, b"source completion.sh; echo rea''dy\n")
        wait_until(lambda: is_shown("ready\r\n"))
        for typed, whole in TYPED.items():
            os.write(terminal, typed.encode() + b"\t")
            wait_until(lambda whole=whole: is_shown(whole))
            os.write(terminal, b"\x15")  # Ctrl-U: an empty line
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_all_keys_are_offered_and_the_values_of_those_that_list_them():
    assert offers() == [f"{key}=" for key in KEYS]
    assert offers("save_plot", "save_plot=") == ["save_plot=false", "save_plot=true"]
    assert offers("base_lr") == offers("no_such_key") == []
