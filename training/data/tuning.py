"""The faces of a fine-tuning: read with their name, and mixed with what the model knows already."""

import re
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from .records import FaceRecord
from .rows import FaceRows
from .sources import TooManyBrokenSamplesError, open_faces


def read_faces(source: str, trigger: str | None = None) -> list[FaceRecord]:
    """
    Read all faces of a data set; of those that people fine-tune on, none may be broken.

    Args:
        source (`str`):
            A folder of pictures, each with a `.txt` file of the same name (one caption a line), or with a line of
            `metadata.jsonl`; or any other data set that [`~unif2ace.training.data.sources.open_faces`] knows.
        trigger (`str`, *optional*):
            A name for who is to be seen. Captions without it get it in front, and a picture without caption has it for
            a caption.

    Returns:
        `list[FaceRecord]` with pictures in RGB.

    Raises:
        FileNotFoundError: if there is no such data set or no picture in it.
        ValueError: if a face cannot be used: the picture or its caption cannot be read, or it has no caption and there
            is no trigger.
    """
    try:
        records = list(open_faces(source, max_broken=0, need_text=False))
    except TooManyBrokenSamplesError as error:
        found = re.search(r"\((.*)\): mend them", str(error))  # its advice is for data sets that may have holes
        what = found.group(1) if found else str(error)
        raise ValueError(f"a face of {source} cannot be used: {what}; mend it or take it out") from error
    if not records:
        raise FileNotFoundError(f"{source} holds no picture")
    bare = [record.id for record in records if not record.captions and not record.questions]
    if bare and not trigger:
        raise ValueError(
            f"{len(bare)} of {len(records)} pictures of {source} have no caption, first {bare[0]}: write one into a "
            ".txt file of the same name or into metadata.jsonl, or name the person with --trigger"
        )
    for record in records:
        record.captions = [_with_trigger(caption, trigger) for caption in record.captions or ([""] if trigger else [])]
    return records


def _with_trigger(caption: str, trigger: str | None) -> str:
    if not trigger or trigger.lower() in caption.lower():
        return caption
    if not caption:
        return trigger
    first = caption[0].lower() if caption.startswith(("A ", "An ", "The ")) else caption[0]
    return f"{trigger}, {first}{caption[1:]}"


class TuningRows(Dataset):
    """
    What a fine-tuning sees: rows of the faces for the tasks that are tuned, and rows that keep what the model knows.

    Args:
        faces ([`FaceRows`]): The rows of the faces.
        tasks (`Sequence[str]`): Tasks to tune, `"t2i"`, `"mmu"` or both.
        prior (`Sequence[tuple[str, torch.LongTensor]]`, *optional*):
            Prompts and the image codes (N,) that the model makes of them before it is tuned, learnt again beside the
            new faces (prior preservation, as in DreamBooth, arXiv:2208.12242).
    """

    def __init__(self, faces: FaceRows, tasks: Sequence[str], prior: Sequence[tuple[str, torch.Tensor]] = ()):
        self.faces = faces
        self.places = [place for place, task in enumerate(faces.tasks) if task in tasks]
        self.prior = list(prior) if "t2i" in tasks else []
        found = {faces.tasks[place] for place in self.places}
        missing = [task for task in tasks if task not in found]
        if missing:
            raise ValueError(f"no face can be used for the task {missing[0]!r}")

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        of_faces = self.faces.tasks
        return [of_faces[place] for place in self.places] + ["t2i"] * len(self.prior)

    def __len__(self) -> int:
        return len(self.places) + len(self.prior)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        if index < len(self.places):
            return self.faces[self.places[index]]
        text, codes = self.prior[index - len(self.places)]
        return {"task": "t2i", "text": text, "codes": codes}
