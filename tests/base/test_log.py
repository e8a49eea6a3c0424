import pytest

from asvr.base.log import logger, set_up_logging


def test_a_work_dir_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run: nothing can be written there \(Not a directory\): give .* --work-dir"):
        set_up_logging(tmp_path / "file" / "run" / "train.log")


def test_a_log_that_cannot_be_opened_is_told_in_one_line(tmp_path):
    (tmp_path / "train.log").mkdir()
    with pytest.raises(ValueError, match=r"nothing can be written there \(Is a directory\)"):
        set_up_logging(tmp_path / "train.log")


def test_earlier_warnings_are_in_the_file_alone(tmp_path, capsys):
    set_up_logging(tmp_path / "train.log", ["an option has 100 % no effect"])
    logger.info("begin")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["an option has 100 % no effect", "begin"]
    shown = capsys.readouterr()
    assert "begin" in shown.out and "no effect" not in shown.out + shown.err
