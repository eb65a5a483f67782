"""Files are complete or absent."""

import json
import os

import pytest

from unif2ace.pipelines.files import new_folder, replacing, write_json


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


def test_a_folder_appears_when_it_is_whole_and_not_otherwise(tmp_path):
    folder = tmp_path / "new" / "model"
    with pytest.raises(RuntimeError), new_folder(folder) as part:
        (part / "weights").write_text("half")
        assert part.name == "model"
        raise RuntimeError("the disk is full")
    assert list(folder.parent.iterdir()) == []
    with new_folder(folder) as part:
        (part / "weights").write_text("whole")
        assert not folder.exists()
    assert (folder / "weights").read_text() == "whole"
    with pytest.raises(FileExistsError, match="--overwrite"), new_folder(folder):
        pass
    with pytest.raises(RuntimeError), new_folder(folder, overwrite=True):
        raise RuntimeError
    assert (folder / "weights").read_text() == "whole"
    with new_folder(folder, overwrite=True) as part:
        (part / "other").touch()
    assert [path.name for path in folder.iterdir()] == ["other"] and list(folder.parent.iterdir()) == [folder]
