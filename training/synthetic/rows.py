"""Training rows of both tasks from the encoded faces of any synthetic world."""

import random
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..data.language.captions import DESCRIBE_PROMPTS, write_caption
from ..data.language.questions import QUESTION_KINDS
from ..data.language.typed import Mixture, ask, talk_without_picture, write_prompt
from .faces import Faces


# To say whether a statement holds is learnt late: such questions come three times as often as where they are tested.
TRAINED_KINDS = (*QUESTION_KINDS, "yes_no", "yes_no")


class WorldRows(Dataset):
    """
    Rows for [`~unif2ace.training.data.collator.UniF2aceCollator`]: each picture once as a text-to-image row and once
    as an understanding row in every pass, with new words in every pass; and conversations without a picture.

    The words of a row depend on `(seed, pass, row)` alone, so that any worker and any resumed run writes the same.

    Args:
        folder (`str` or `Path`): The encoded faces, see [`~unif2ace.training.synthetic.faces.encode_faces`].
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        count (`int`, *optional*): Pictures to use, from the first on; all when not given.
        passes (`int`, *optional*, defaults to 1): How often each picture comes, with other words each time.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        words ([`Mixture`], *optional*): Shares of the kinds of words.
        complete (`float`, *optional*, defaults to 0.0): Conversations without a picture, for each picture.

    Raises:
        FileNotFoundError: if there are fewer faces, or they are not encoded.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        count: int | None = None,
        passes: int = 1,
        seed: int = 0,
        words: Mixture | None = None,
        complete: float = 0.0,
    ):
        self.faces = Faces(folder, split, count or 1)
        if not self.faces.codes:
            raise FileNotFoundError(
                f"{folder} has faces without codes: encode them with `python -m "
                "unif2ace.training.synthetic.train_tokenizer --encode`, and name the folder that this writes"
            )
        self.count = count or len(self.faces)
        self.passes, self.seed, self.words = passes, seed, words or Mixture()
        # one after the other: pictures, the same pictures as understanding rows, conversations without a picture
        self.lengths = (self.count, self.count, round(complete * self.count))

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        return ["t2i" if row < self.count else "mmu" for row in range(sum(self.lengths))] * self.passes

    def __len__(self) -> int:
        return sum(self.lengths) * self.passes

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number, row = divmod(index, sum(self.lengths))
        face = row % self.count
        rng = random.Random(f"{self.seed}-{number}-{row}")
        known = self.faces.attributes[face], self.faces.visible[face]
        if row >= 2 * self.count:
            return {"task": "mmu", "turns": talk_without_picture(*known, rng, self.words), "pictured": False}
        codes = torch.from_numpy(self.faces.codes[face].astype("int64"))
        if row < self.count:
            return {"task": "t2i", "codes": codes, "text": write_prompt(*known, rng, self.words)}
        if rng.random() < self.words.captions:
            turns = [(rng.choice(DESCRIBE_PROMPTS), write_caption(*known, rng).text)]
        else:
            questions = ask(*known, rng, rng.randint(*self.words.questions), self.words, TRAINED_KINDS)
            turns = [(question.question, question.answer) for question in questions]
        return {"task": "mmu", "codes": codes, "turns": turns, "pixel_values": self.faces.pixels([face])[0]}


def section_rows(
    folder: str | Path,
    passes: int,
    validation_count: int,
    seed: int = 0,
    count: int | None = None,
    words: dict | None = None,
    complete: float = 0.0,
) -> tuple[WorldRows, WorldRows]:
    """
    The rows of a configuration's `data` section with `source: synthetic`.

    Args:
        folder (`str` or `Path`): The encoded faces.
        passes (`int`): How often each picture comes, with other words each time.
        validation_count (`int`): Held-out pictures, of the split `"validation"`.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        count (`int`, *optional*): Pictures to train on; all when not given.
        words (`dict`, *optional*): Shares of the kinds of words, see [`Mixture`].
        complete (`float`, *optional*, defaults to 0.0): Conversations without a picture, for each picture.

    Returns:
        Training rows and held-out rows.
    """
    mixture = Mixture(**(words or {}))
    train = WorldRows(folder, "train", count=count, passes=passes, seed=seed, words=mixture, complete=complete)
    return train, WorldRows(folder, "validation", count=validation_count, words=mixture, complete=complete)
