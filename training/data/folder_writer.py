"""Face records as a folder of pictures with `metadata.jsonl`, which all readers of image folders understand."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...pipelines.files import check_new, new_folder
from .records import FaceRecord


_PER_FOLDER = 1000


class FolderWriter:
    """
    Writes records into a new folder, which appears when all are written: a context manager.

    Args:
        folder (`str` or `Path`): The folder.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a folder that exists may be replaced.

    Raises:
        FileExistsError: if it exists and `overwrite` is not given.
        ValueError: at the end, if no record was written.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        check_new(folder, overwrite)
        self.folder, self.overwrite, self.count = Path(folder), overwrite, 0

    def __enter__(self) -> "FolderWriter":
        self._stack = ExitStack()
        self._part = self._stack.enter_context(new_folder(self.folder, self.overwrite))
        self._metadata = self._stack.enter_context((self._part / "metadata.jsonl").open("w", encoding="utf-8"))
        return self

    def add(self, record: FaceRecord) -> None:
        """Write one record; its picture as PNG, which loses nothing."""
        name = f"{self.count // _PER_FOLDER:04}/{self.count:07}.png"
        path = self._part / name
        path.parent.mkdir(exist_ok=True)
        record.image.save(path)
        row: dict[str, Any] = {"file_name": name, "captions": record.captions}
        row["conversations"] = [{"question": item.question, "answer": item.answer} for item in record.questions]
        row |= {"identity": record.identity, "id": record.id, "source": record.source, "labels": record.labels}
        self._metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and not self.count:
            error = ValueError(f"{self.folder} was not written: no sample is left")
            self._stack.__exit__(ValueError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)
