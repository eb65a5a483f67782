"""What a face data set holds, before anything is trained on it."""

import hashlib
import random
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, field, fields
from statistics import mean, median
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .language.captions import parse_caption
from .records import FaceRecord
from .sources import FaceStream


SMALL_SIDE = 64  # pixels; below it fine attributes cannot be seen
_SHEET_COLUMNS, _CELL, _TEXT_LINES, _LINE = 6, 192, 6, 14


@dataclass
class Inspection:
    """What was found in a data set."""

    source: str
    records: int = 0  # usable samples
    sizes: Counter = field(default_factory=Counter)  # (width, height) -> pictures
    small: list[str] = field(default_factory=list)  # names of pictures whose short side is less than 64 pixels
    with_words: int = 0  # samples that have a caption or a question
    duplicates: int = 0  # pictures whose pixels are exactly those of an earlier one
    caption_words: list[int] = field(default_factory=list)  # words of each caption
    caption_attributes: list[int] = field(default_factory=list)  # that the parser of templates reads in each caption
    stated: Counter = field(default_factory=Counter)  # attribute and value -> captions that state it
    captions_per_record: Counter = field(default_factory=Counter)
    questions_per_record: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)  # the short answers, in lower case
    labels: dict[str, Counter] = field(default_factory=dict)  # attribute or label -> its values
    identities: Counter = field(default_factory=Counter)  # person -> pictures
    broken: int = 0
    broken_samples: list[tuple[str, str]] = field(default_factory=list)  # the first of them
    not_read: list[str] = field(default_factory=list)  # other files, columns, splits

    def add(self, record: FaceRecord) -> None:
        """Count one record."""
        self.records += 1
        self.with_words += bool(record.captions or record.questions)
        if record.image is not None:
            self.sizes[record.image.size] += 1
            if min(record.image.size) < SMALL_SIDE:
                self.small.append(record.id)
        self.captions_per_record[len(record.captions)] += 1
        self.questions_per_record[len(record.questions)] += 1
        for caption in record.captions:
            self.caption_words.append(len(re.findall(r"\w+", caption)))
            stated = parse_caption(caption)
            self.caption_attributes.append(len(stated))
            self.stated.update(f"{name}: {value}" for name, value in stated.items())
        self.answers.update(
            question.answer.lower().rstrip(".") for question in record.questions if len(question.answer.split()) <= 3
        )
        for name, value in (record.labels or record.attributes).items():
            self.labels.setdefault(name, Counter())[value] += 1
        if record.identity is not None:
            self.identities[record.identity] += 1

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON has them."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content["sizes"] = {f"{width}x{height}": count for (width, height), count in self.sizes.most_common()}
        for name in ("caption_words", "caption_attributes"):
            content[name] = spread(getattr(self, name))
        content["stated"] = dict(self.stated.most_common())
        content["answers"] = dict(self.answers.most_common(50))
        content["identities"] = {"people": len(self.identities), "pictures": sum(self.identities.values())}
        return content

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = [f"{self.source}: {self.records} usable samples, {self.broken} broken"]
        lines += [f"  broken: {name}: {problem}" for name, problem in self.broken_samples]
        lines += [f"  not read: {note}" for note in self.not_read]
        wordless = self.records - self.with_words
        if wordless:
            lines.append(f"  without a caption or question: {wordless} of {self.records} pictures")
        pictures = sum(self.sizes.values())
        if pictures:
            sides = [min(size) for size in self.sizes.elements()]
            usual = ", ".join(f"{w}x{h} ({n})" for (w, h), n in self.sizes.most_common(3))
            lines.append(f"pictures: {pictures} of {len(self.sizes)} sizes, mostly {usual}")
            lines.append(f"  short side: {show_spread(spread(sides))} pixels; {len(self.small)} below {SMALL_SIDE}")
            lines.append(f"  exact duplicates: {self.duplicates}")
        if self.identities:
            counts = list(self.identities.values())
            lines.append(f"people: {len(counts)}; pictures of each: {show_spread(spread(counts))}")
        if self.caption_words:
            lines.append(f"captions: {len(self.caption_words)}; per picture: {_counts(self.captions_per_record)}")
            lines.append(f"  words: {show_spread(spread(self.caption_words))}")
            lines.append(f"  attributes stated: {show_spread(spread(self.caption_attributes))}")
            usual = ", ".join(f"{name} ({n})" for name, n in self.stated.most_common(8))
            lines.append(f"  most often: {usual or 'none that the vocabulary knows'}")
        questions = sum(count * pictures for count, pictures in self.questions_per_record.items())
        if questions:
            lines.append(f"questions: {questions}; per picture: {_counts(self.questions_per_record)}")
            usual = ", ".join(f"{answer!r} {count / questions:.0%}" for answer, count in self.answers.most_common(6))
            lines.append(f"  short answers: {usual or 'none'}")
        if self.labels:
            lines.append(f"labels: {len(self.labels)}")
            width = max(map(len, self.labels))
            for name, values in sorted(self.labels.items()):
                total = values.total()
                shares = ", ".join(f"{value} {count / total:.0%}" for value, count in values.most_common(6))
                lines.append(f"  {name:{width}}  {shares}")
        return lines


def spread(values: list[int]) -> dict[str, float]:
    """Least, median, mean and greatest of some numbers; empty for none."""
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": round(mean(values), 2), "max": max(values)}


def show_spread(numbers: dict[str, float]) -> str:
    """[`spread`] in one line."""
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items())


def _counts(counter: Counter) -> str:
    return ", ".join(f"{value} ({count} times)" for value, count in sorted(counter.items())[:6])


def inspect_faces(
    stream: FaceStream, limit: int | None = None, samples: int = 24, seed: int = 0, progress: bool = True
) -> tuple[Inspection, list[FaceRecord]]:
    """
    Read a data set and count.

    Args:
        stream ([`FaceStream`]): The data set.
        limit (`int`, *optional*): Most samples to read.
        samples (`int`, *optional*, defaults to 24): Records to draw for the contact sheet, each as likely.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.
        progress (`bool`, *optional*, defaults to `True`): Show a bar.

    Returns:
        The [`Inspection`] and the drawn records, in the order of the data set.
    """
    found, rng = Inspection(stream.name, not_read=list(stream.notes)), random.Random(seed)
    drawn: list[tuple[int, FaceRecord]] = []
    seen: set[bytes] = set()
    for record in tqdm(stream, total=limit, desc="inspecting", unit="face", disable=None if progress else True):
        found.add(record)
        if record.image is not None:
            digest = hashlib.sha256(repr(record.image.size).encode() + record.image.tobytes()).digest()[:16]
            found.duplicates += digest in seen
            seen.add(digest)
            place = len(drawn) if len(drawn) < samples else rng.randrange(found.records)
            if place < samples:
                drawn[place : place + 1] = [(found.records, _small(record))]
        if limit is not None and found.records >= limit:
            break
    found.broken, found.broken_samples = stream.broken.count, list(stream.broken.named)
    return found, [record for _, record in sorted(drawn, key=lambda item: item[0])]


def _small(record: FaceRecord) -> FaceRecord:
    """The record with its picture as small as the contact sheet shows it."""
    picture = record.image.copy()
    picture.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
    record.image = picture
    return record


def contact_sheet(records: list[FaceRecord]) -> Image.Image:
    """
    The pictures of some records, with the name and the first caption (or question and answer) below each.

    Raises:
        ValueError: if there is no record.
    """
    if not records:
        raise ValueError("there is no picture to draw a contact sheet of")
    font = ImageFont.load_default(11)
    columns = min(_SHEET_COLUMNS, len(records))
    rows = -(-len(records) // columns)
    height = _CELL + (_TEXT_LINES + 1) * _LINE + 8
    sheet = Image.new("RGB", (columns * (_CELL + 8) + 8, rows * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for number, record in enumerate(records):
        left, top = 8 + number % columns * (_CELL + 8), 8 + number // columns * height
        width, picture_height = record.image.size
        scale = min(_CELL / width, _CELL / picture_height)
        size = max(1, round(width * scale)), max(1, round(picture_height * scale))
        sheet.paste(record.image.resize(size, Image.Resampling.LANCZOS), (left + (_CELL - size[0]) // 2, top))
        draw.text((left, top + _CELL + 2), record.id[-32:], fill="gray", font=font)
        lines = textwrap.wrap(_words_of(record), 31)
        if len(lines) > _TEXT_LINES:
            lines[_TEXT_LINES - 1 :] = [lines[_TEXT_LINES - 1][:28] + "..."]
        for place, line in enumerate(lines, start=1):
            draw.text((left, top + _CELL + 2 + place * _LINE), line, fill="black", font=font)
    return sheet


def _words_of(record: FaceRecord) -> str:
    if record.captions:
        return record.captions[0]
    if record.questions:
        return f"{record.questions[0].question} {record.questions[0].answer}"
    return "(no words)"
