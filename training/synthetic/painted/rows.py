"""Training rows of both tasks from the render cache of painted faces."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ...data.language.captions import DESCRIBE_PROMPTS, respell, write_caption
from ...data.language.questions import QUESTION_KINDS, write_questions
from ...data.language.visibility import assumed_visible
from ...data.records import FaceRecord
from ...reward import Prompt
from .dataset import attributes_of, identity_of, load_rendered, painted_face, rendered_seed
from .exact_visibility import exact_visibility
from .painter import paint


# Shares of the mixture. Most prompts state everything that can be seen, the rest are short, as users write them.
FULL_PROMPT_SHARE = 0.55
SHORT_PROMPT_COVERAGE = (0.1, 0.8)
CAPTION_SHARE = 0.4  # of the understanding rows; the others are questions
QUESTIONS = (8, 11)  # about one picture in one row: the picture is the costly part of it, so many share one
TESTED_QUESTIONS = 8  # about each held-out face
# To say whether a statement holds is learnt late: such questions come three times as often as where they are tested.
TRAINED_KINDS = (*QUESTION_KINDS, "yes_no", "yes_no")


class PaintedRows(Dataset):
    """
    Rows for [`~unif2ace.training.data.collator.UniF2aceCollator`]: each picture once as a text-to-image row and once
    as an understanding row in every pass, with new words in every pass.

    The words of a row depend on `(seed, pass, row)` alone, so that any worker and any resumed run writes the same.

    Args:
        folder (`str` or `Path`): The render cache: `<split>.npy` (or its chunks) and `<split>_codes.npy`.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        count (`int`, *optional*): Pictures to use, from the first on; all that have codes when not given.
        passes (`int`, *optional*, defaults to 1): How often each picture comes, with other words each time.
        seed (`int`, *optional*, defaults to 0): Seed of the words.

    Raises:
        FileNotFoundError: if the codes or enough pictures are missing.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        count: int | None = None,
        passes: int = 1,
        seed: int = 0,
    ):
        path = Path(folder) / f"{split}_codes.npy"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; encode the pictures with "
                "`python -m unif2ace.training.synthetic.train_tokenizer --encode`"
            )
        self.codes = np.load(path, mmap_mode="r")
        self.count = len(self.codes) if count is None else count
        if self.count > len(self.codes):
            raise FileNotFoundError(f"{path} has the codes of {len(self.codes)} pictures, expected {self.count}")
        self.pictures = load_rendered(folder, split, at_least=self.count)
        self.split, self.passes, self.seed = split, passes, seed
        self.data_seed = rendered_seed(folder, split)

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        return (["t2i"] * self.count + ["mmu"] * self.count) * self.passes

    def __len__(self) -> int:
        return 2 * self.count * self.passes

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number, row = divmod(index, 2 * self.count)
        picture = row % self.count
        rng = random.Random(f"{self.seed}-{number}-{row}")
        attributes = attributes_of(picture, self.split, self.data_seed)
        visible = assumed_visible(attributes)
        codes = torch.from_numpy(self.codes[picture].astype(np.int64))
        if row < self.count:
            coverage = 1.0 if rng.random() < FULL_PROMPT_SHARE else rng.uniform(*SHORT_PROMPT_COVERAGE)
            caption = write_caption(attributes, visible, rng, coverage=coverage)
            return {"task": "t2i", "codes": codes, "text": respell(caption.text, rng)}
        if rng.random() < CAPTION_SHARE:
            turns = [(rng.choice(DESCRIBE_PROMPTS), write_caption(attributes, visible, rng).text)]
        else:
            questions = write_questions(attributes, visible, rng, rng.randint(*QUESTIONS), TRAINED_KINDS)
            turns = [(question.question, question.answer) for question in questions]
        pixels = torch.from_numpy(self.pictures[picture].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
        return {"task": "mmu", "codes": codes, "turns": turns, "pixel_values": pixels}


def section_rows(
    folder: str | Path, passes: int, validation_count: int, seed: int = 0, count: int | None = None
) -> tuple[PaintedRows, PaintedRows]:
    """
    The rows of a configuration's `data` section with `source: painted`.

    Args:
        folder (`str` or `Path`): The render cache, with codes.
        passes (`int`): How often each picture comes, with other words each time.
        validation_count (`int`): Held-out pictures, of the split `"validation"`.
        seed (`int`, *optional*, defaults to 0): Seed of the words.
        count (`int`, *optional*): Pictures to train on; all that have codes when not given.

    Returns:
        Training rows and held-out rows.
    """
    train = PaintedRows(folder, "train", count=count, passes=passes, seed=seed)
    return train, PaintedRows(folder, "validation", count=validation_count)


class PaintedRecords(Sequence):
    """
    Painted faces as records, each painted when it is asked for: no files, for trials and tests.

    Args:
        count (`int`): Faces.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        seed (`int`, *optional*, defaults to 0): Seed that they are painted with.
        size (`int`, *optional*, defaults to 64): Side of the pictures in pixels.
    """

    def __init__(self, count: int, split: str = "train", seed: int = 0, size: int = 64):
        self.count, self.split, self.seed, self.size = count, split, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> FaceRecord:
        if not 0 <= number < self.count:
            raise IndexError(f"face {number} of {self.count}")
        return painted_face(number, self.split, self.seed, self.size)


def held_out_faces(
    folder: str | Path, count: int, split: str = "test", size: int = 64, workers: int = 1
) -> list[FaceRecord]:
    """
    Painted faces to measure by: a full caption and eight questions of each, and which attributes the picture shows.

    Args:
        folder (`str` or `Path`): Where what pictures show is remembered, see
            [`~unif2ace.training.synthetic.painted.exact_visibility.exact_visibility`].
        count (`int`): Faces, from the first on.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` to choose settings by.
        size (`int`, *optional*, defaults to 64): Side of the pictures, in pixels.
        workers (`int`, *optional*, defaults to 1): Processes that find out what the pictures show.

    Returns:
        `list[FaceRecord]`: `visible` holds what the picture shows exactly and sentences speak of by cautious rules.
    """
    faces = []
    for index, seen in enumerate(exact_visibility(folder, split, count, workers)):
        attributes = attributes_of(index, split)
        spoken_of = assumed_visible(attributes)
        visible = {name: spoken_of[name] and seen[name] for name in seen}
        caption = write_caption(attributes, spoken_of, random.Random(f"caption-{index}"), coverage=1.0)
        faces.append(
            FaceRecord(
                image=paint(attributes, identity_of(index, split), size),
                captions=[caption.text],
                questions=write_questions(attributes, visible, random.Random(f"questions-{index}"), TESTED_QUESTIONS),
                attributes=attributes,
                visible=visible,
                source="painted",
                id=f"painted-{split}-{index}",
            )
        )
    return faces


def painted_prompts(count: int, split: str = "train", start: int = 0, coverage: float = 0.6) -> list[Prompt]:
    """Descriptions of painted faces number `start` and following, with the attributes that they state."""
    prompts = []
    for number in range(start, start + count):
        attributes = attributes_of(number, split)
        rng = random.Random(f"reward-{split}-{number}")
        caption = write_caption(attributes, assumed_visible(attributes), rng, coverage=coverage)
        prompts.append(Prompt(caption.text, dict(caption.attributes)))
    return prompts
