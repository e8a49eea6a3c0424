"""Files and folders that hold the old or the new, whenever the process ends."""

import os
import subprocess
import sys

import pytest
from run_helpers import ROOT

from asvr.base.files import partial_of, replace_text, replaced_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from asvr.base.files import {name}
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
target = Path(sys.argv[1])
"""


def killed_in(name: str, code: str, target) -> None:
    command = [sys.executable, "-c", KILLED.format(name=name) + code, str(target)]
    assert subprocess.run(command, cwd=ROOT).returncode == -9


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "done.json"
    replace_text(file, "old")
    killed_in("replace_text", "os.fsync = kill\nreplace_text(target, 'new')", file)
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    replace_text(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file], "what the killed process left is removed"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "text_tokenizer"
    with replaced_folder(folder) as partial:
        (partial / "a").write_text("old")
    code = "with replaced_folder(target) as partial:\n    (partial / 'a').write_text('half')\n    kill()\n"
    killed_in("replaced_folder", code, folder)
    assert (folder / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(KeyError), replaced_folder(folder) as partial:
        raise KeyError
    assert list(tmp_path.iterdir()) == [folder] and (folder / "a").read_text() == "old"


def test_what_living_processes_write_is_left_alone(tmp_path):
    file = tmp_path / "features"
    own = partial_of(file)
    own.mkdir()
    assert str(os.getpid()) in own.name
    other = partial_of(file)
    assert other != own and own.is_dir()
    elsewhere = own.rename(tmp_path / ".features.another-host.999999999.0.partial")
    partial_of(file)
    assert elsewhere.is_dir()
