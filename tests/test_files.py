"""Files are complete or absent."""

import json
import os

import pytest

from unif2ace.training.files import replacing, write_json


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half of the n")
        raise RuntimeError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_file_appears_when_it_is_whole_and_others_may_read_it(tmp_path):
    path = tmp_path / "notes.json"
    with replacing(path) as part:
        part.write_text("{}")
        assert not path.exists() and part.suffix == ".json"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    write_json(path, {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
