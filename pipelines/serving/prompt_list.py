"""Lists of prompts to generate from: JSON lines or plain text, with every bad line named."""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..seeds import SEED_LIMIT, seed_of


MAX_LINE_BYTES = 100_000
FORMATS = ("png", "jpg", "webp")
ENGINES = ("auto", "processes", "ray")
BATCH_SIZE = 8  # pictures in one forward pass: more take more memory and hardly less time
FIELDS = ("id", "prompt", "seed", "steps", "guidance", "negative")

# An id becomes a file's name, also on systems with strict rules.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class PromptItem:
    """
    One picture to make.

    Args:
        id (`str`): Names the picture's file: letters, digits, `.`, `_` and `-`.
        prompt (`str`): What the face looks like.
        seed (`int`): Of the picture's own generator.
        steps (`int`): Decoding steps.
        guidance (`float`): Guidance scale; 1 is none.
        negative (`str`, *optional*): What guidance leads away from.
        line (`int`): Its line in the list.
    """

    id: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    negative: str | None = None
    line: int = 0

    def settings(self) -> dict[str, Any]:
        """What decides the picture, besides the checkpoint."""
        return {name: value for name, value in asdict(self).items() if name in FIELDS}


def read_prompts(path: str | Path, steps: int, guidance: float) -> tuple[list[PromptItem], list[str]]:
    """
    Read a list of prompts.

    Args:
        path (`str` or `Path`):
            A `.jsonl` file, each line an object with `id` and `prompt` and, if wanted, `seed`, `steps`, `guidance` and
            `negative`; or a `.txt` file, each line a prompt whose id is the line's number. Empty lines are skipped.
        steps (`int`): Steps of items that do not say.
        guidance (`float`): Guidance of items that do not say.

    Returns:
        `tuple` of the `list[PromptItem]` and a `list[str]` that says for each bad line what is wrong with it.

    Raises:
        ValueError: if the file's ending is another one.
        OSError: if it cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{path} ends in {path.suffix!r}, expected a list of prompts in .jsonl or .txt")
    items: dict[str, PromptItem] = {}
    errors = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                item = _read_line(raw, number, path.suffix == ".jsonl", steps, guidance)
                if item.id in items:
                    raise ValueError(f"the id {item.id!r} is that of line {items[item.id].line} already")
                items[item.id] = item
            except ValueError as error:
                errors.append(f"line {number}: {error}")
    return list(items.values()), errors


def _read_line(raw: bytes, number: int, is_json: bool, steps: int, guidance: float) -> PromptItem:
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"it has {len(raw)} bytes, expected at most {MAX_LINE_BYTES}")
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    if not is_json:
        item_id = f"{number:06d}"
        return PromptItem(item_id, _text("prompt", text), seed_of(item_id), steps, guidance, None, number)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    if unknown := sorted(set(content) - set(FIELDS)):
        raise ValueError(f"it has the field {unknown[0]!r}, expected some of {', '.join(FIELDS)}")
    item_id = content.get("id")
    item_id = str(item_id) if isinstance(item_id, int) and not isinstance(item_id, bool) else item_id
    if not isinstance(item_id, str) or not _ID.fullmatch(item_id):
        raise ValueError(f"its id is {item_id!r}, expected up to 100 letters, digits, '.', '_' and '-'")
    negative = content.get("negative")
    return PromptItem(
        id=item_id,
        prompt=_text("prompt", content.get("prompt")),
        seed=_whole("seed", content.get("seed", seed_of(item_id)), 0, SEED_LIMIT - 1),
        steps=_whole("steps", content.get("steps", steps), 1, 1000),
        guidance=_guidance(content.get("guidance", guidance)),
        negative=None if negative is None else _text("negative", negative),
        line=number,
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"its {name} is {value!r}, expected a text with at least one word")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its {name} is not valid Unicode at character {error.start}") from error
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"its {name} is {value!r}, expected a whole number from {low} to {high}")
    return value


def _guidance(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1e6 or not math.isfinite(value):
        raise ValueError(f"its guidance is {value!r}, expected a number of at least 0")
    return float(value)


__all__ = ["PromptItem", "read_prompts"]
