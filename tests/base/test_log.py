import pytest

from asvr.base.log import set_up_logging


def test_a_work_dir_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run: nothing can be written there \(Not a directory\): give .* --work-dir"):
        set_up_logging(tmp_path / "file" / "run" / "train.log")


def test_a_log_that_cannot_be_opened_is_told_in_one_line(tmp_path):
    (tmp_path / "train.log").mkdir()
    with pytest.raises(ValueError, match=r"nothing can be written there \(Is a directory\)"):
        set_up_logging(tmp_path / "train.log")
