"""Which settings of a checkpoint may differ when its stage goes on."""

import json

import pytest

from asvr.engine.identity import check_same_config


def checkpoint_of(folder, config):
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps(dict(config=config, sha256={})))
    return folder


def test_a_field_with_a_new_name_is_the_same_field(tmp_path):
    old = {"init": "scratch", "data.train.type": "EasyVQA", "data.train.max_pictures": 8}
    new = {"init": "scratch", "data.train.type": "EasyVQA", "data.train.max_images": 8}
    folder = checkpoint_of(tmp_path / "step_1", old)
    check_same_config(folder, new)
    with pytest.raises(ValueError, match="data.train.max_images: 8 in the checkpoint, 9 now"):
        check_same_config(folder, new | {"data.train.max_images": 9})
