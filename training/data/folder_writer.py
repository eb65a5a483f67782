"""Face records as a folder of pictures with `metadata.jsonl`, which all readers of image folders understand."""

import json
import shutil
from pathlib import Path
from typing import Any

from .records import FaceRecord


_PER_FOLDER = 1000


class FolderWriter:
    """
    Writes records into a new folder, which appears when all are written: a context manager.

    Args:
        folder (`str` or `Path`): The folder.

    Raises:
        FileExistsError: if it exists and is not empty.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} exists: choose another folder, or remove it")
        self.part = self.folder.with_name(f".{self.folder.name}.part")
        self.count = 0

    def __enter__(self) -> "FolderWriter":
        shutil.rmtree(self.part, ignore_errors=True)  # of a run that was killed
        self.part.mkdir(parents=True)
        self._metadata = (self.part / "metadata.jsonl").open("w", encoding="utf-8")
        return self

    def add(self, record: FaceRecord) -> None:
        """Write one record; its picture as PNG, which loses nothing."""
        name = f"{self.count // _PER_FOLDER:04}/{self.count:07}.png"
        path = self.part / name
        path.parent.mkdir(exist_ok=True)
        record.image.save(path)
        row: dict[str, Any] = {"file_name": name, "captions": record.captions}
        row["conversations"] = [{"question": item.question, "answer": item.answer} for item in record.questions]
        row |= {"identity": record.identity, "id": record.id, "source": record.source, "labels": record.labels}
        self._metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.count += 1

    def __exit__(self, kind, error, trace) -> None:
        self._metadata.close()
        if kind is not None or not self.count:
            shutil.rmtree(self.part)
            if kind is None:
                raise ValueError(f"{self.folder} was not written: no sample is left")
            return
        if self.folder.exists():
            self.folder.rmdir()  # an empty one
        self.part.replace(self.folder)
