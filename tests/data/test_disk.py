"""What a cache will take of the disk is told and checked before it is computed."""

import logging
from collections import namedtuple

import pytest

from asvr.data import disk
from asvr.data.disk import require_room


def test_room_is_told_and_missing_room_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(2e9))
    with caplog.at_level(logging.INFO, logger="asvr"):
        require_room(tmp_path, 1_500_000_000, "codes of 7 pictures", 1.5)
    assert f"codes of 7 pictures: 1.5 GB of disk, 2.0 GB are free in {tmp_path}" in caplog.text
    with pytest.raises(ValueError, match=r"codes take 1.5 GB, more than data.cache_budget_gb=1.25"):
        require_room(tmp_path, 1_500_000_000, "codes", 1.25)
    with pytest.raises(ValueError, match=r"features take 3 GB, 2 GB are free"):
        require_room(tmp_path, 3_000_000_000, "features")
