"""Files of patterns."""

import pytest

from asvr.data.shards import find_files


def test_files_of_patterns(tmp_path):
    for name in ("b.tar", "a.tar", "[1].tar", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    tars = [str(tmp_path / name) for name in ("[1].tar", "a.tar", "b.tar")]
    assert find_files(str(tmp_path / "*.tar"), "T") == tars
    assert find_files([str(tmp_path / "c.txt"), tars[0]], "T") == [str(tmp_path / "c.txt"), tars[0]]
    with pytest.raises(ValueError, match="T: files '.*none.*' names no file"):
        find_files([tars[1], str(tmp_path / "none*")], "T")
    with pytest.raises(ValueError, match="a file twice: .*a.tar"):
        find_files([tars[1], str(tmp_path / "*.tar")], "T")
