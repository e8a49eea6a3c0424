"""Files of patterns."""

import pytest

from asvr.data.shards import expand_braces, find_files


def test_files_of_patterns(tmp_path):
    for name in ("b.tar", "a.tar", "[1].tar", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    tars = [str(tmp_path / name) for name in ("[1].tar", "a.tar", "b.tar")]
    assert find_files(str(tmp_path / "*.tar"), "T") == tars
    assert find_files([str(tmp_path / "c.txt"), tars[0]], "T") == [str(tmp_path / "c.txt"), tars[0]]
    with pytest.raises(ValueError, match="T: files='.*none.*' matches no file"):
        find_files([tars[1], str(tmp_path / "none*")], "T")
    with pytest.raises(ValueError, match="matches .*a.tar twice"):
        find_files([tars[1], str(tmp_path / "*.tar")], "T")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("x{008..010}.tar", ["x008.tar", "x009.tar", "x010.tar"]),
        ("{1..0}{a,b}", ["1a", "1b", "0a", "0b"]),
        ("{a}.tar", ["{a}.tar"]),
        ("{a,}.tar", ["a.tar", ".tar"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_files_of_braces_keep_their_order(tmp_path):
    for name in ("0.tar", "1.tar", "2.tar", "{0..2}.txt"):
        (tmp_path / name).touch()
    assert find_files(f"{tmp_path}/{{2..0}}.tar", "T") == [f"{tmp_path}/{i}.tar" for i in (2, 1, 0)]
    assert find_files(f"{tmp_path}/{{0,[12]}}.tar", "T") == [f"{tmp_path}/{i}.tar" for i in (0, 1, 2)]
    assert find_files(f"{tmp_path}/{{0..2}}.txt", "T") == [f"{tmp_path}/{{0..2}}.txt"]
    with pytest.raises(ValueError, match=r"files='.*/3.tar' \(of '.*{2..3}.tar'\) matches no file"):
        find_files(f"{tmp_path}/{{2..3}}.tar", "T")
