"""Files are complete or absent."""

import errno
import json
import os

import pytest

from unif2ace.cli.common import sentence
from unif2ace.pipelines.files import new_folder, replacing, system_error, write_json
from unif2ace.training.checkpoints import is_write_error


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half of the n")
        raise RuntimeError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "notes.txt"
    with pytest.raises(OSError) as caught, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert sentence(caught.value) == f"{path} could not be written, because the disk is full: make room"
    with pytest.raises(OSError) as caught, replacing(path):
        open("/dev/null/x", "w")
    assert caught.value.filename == "/dev/null/x"
    told = system_error(Exception("No space left on device (os error 28)"))  # as tokenizers tells it
    assert told.errno == errno.ENOSPC and is_write_error(Exception("File too large (os error 27)"))
    assert system_error(ValueError("28")) is None


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
