"""What a cache will take of the disk is told and checked before it is computed."""

import errno
import logging
import os
from collections import namedtuple

import pytest

from asvr.base import disk
from asvr.base.disk import full_disk, naming, require_room


def test_room_is_told_and_missing_room_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(2e9))
    with caplog.at_level(logging.INFO, logger="asvr"):
        require_room(tmp_path, 1_500_000_000, "codes of 7 images", 1.5)
    assert f"codes of 7 images: 1.5 GB of disk, 2.0 GB are free in {tmp_path}" in caplog.text
    with pytest.raises(ValueError, match=r"codes take 1.5 GB, more than data.cache_budget_gb=1.25"):
        require_room(tmp_path, 1_500_000_000, "codes", 1.25)
    with pytest.raises(ValueError, match=r"features take 3 GB, 2 GB are free"):
        require_room(tmp_path, 3_000_000_000, "features")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_seen_through_what_libraries_make_of_it(code):
    plain = OSError(code, os.strerror(code))
    behind = RuntimeError("unexpected pos 576 vs 534")
    behind.__context__ = plain
    found = [plain, behind, RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})"), ValueError(str(plain))]
    assert [full_disk(error).errno for error in found] == [code] * 4
    for other in (
        OSError(errno.EACCES, "denied"),
        ValueError("a wrong value"),
        RuntimeError("Is a directory (os error 21)"),
    ):
        assert full_disk(other) is None


def test_the_file_that_there_is_no_room_for_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/new/log cannot be written: {os.strerror(errno.ENOSPC)}; .* free"
    ):
        with naming(tmp_path / "new" / "log"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), naming(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
