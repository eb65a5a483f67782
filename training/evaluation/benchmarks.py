"""
Two benchmarks of questions about photographs of faces, read from the folders that their authors publish.

FaceXBench (Narayan et al., arXiv 2501.10360): 5,000 multiple-choice questions of 14 tasks, over one or several
pictures. The folder is that of the authors' repository: `benchmark/*.json` and the pictures below it. A file is
`{"category", "sub-category", "dataset", "question_type": "MCQ", "num_images": "single" | "multiple", "prepend_text",
"postpend_text", "questions": {"1": {"image_paths", "question_text", "options", "correct_answer_option", "answer"}}}`.

FaceBench (Wang et al., CVPR 2025, arXiv 2503.21457): questions about five views of faces, true/false (TFQ), single
choice (SCQ), multiple choice (MCQ) and open (OEQ). The folder holds `*.jsonl` with `{"question_id", "question_type",
"image_id", "text", "instruction", "options", "gt_answer", "metadata": {"image_source", "view", "attribute_level"}}` a
line, and the pictures, which the authors do not ship (they are CelebA-HQ's), by the names of `image_id` in `images/`
or beside the files. TFQ and SCQ are scored by accuracy, MCQ by F1; open questions are left out here: their text scores
(BLEU, ROUGE) say little, so have them rated by a judge (part `conversations` of the suite `custom`).
"""

import json
import os
import re
from pathlib import Path

from ..data.sources.stream import file_below
from .choices import LETTERS, ChoiceQuestion


DATASET_IDS = {"facexbench": "Kartik-3004/facexbench", "facebench": "wxqlab/FaceBench"}  # on the Hub
TYPES = ("TFQ", "SCQ", "MCQ")
_TRUTH = ("True", "False")
_LETTERED = re.compile(r"^\s*\(?([A-Z])[).:]\s*(.+)$", re.DOTALL)


def load_facexbench(folder: str | os.PathLike) -> list[ChoiceQuestion]:
    """
    Read the benchmark.

    Args:
        folder (`str` or `os.PathLike`): The folder with `benchmark/` in it.

    Returns:
        `list[ChoiceQuestion]`: in the order of files and questions; sliced by category, task, data set and whether
        there are several pictures.

    Raises:
        FileNotFoundError: if there are no files of questions.
        ValueError: if a file is no such file, or a picture is missing or lies outside of the folder.
    """
    folder = Path(folder)
    files = sorted((folder / "benchmark").glob("**/*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} has no benchmark/*.json, expected the folder of FaceXBench")
    return [question for file in files for question in _read(file, folder)]


def _read(file: Path, folder: Path) -> list[ChoiceQuestion]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        groups = {
            "category": content["category"],
            "task": content["sub-category"],
            "dataset": content["dataset"],
            "images": content["num_images"],
        }
        before, after = (content.get(name) or "" for name in ("prepend_text", "postpend_text"))
        return [
            ChoiceQuestion(
                id=f"{file.stem}-{number}",
                images=tuple(file_below(folder, name) for name in asked["image_paths"]),
                question=" ".join(filter(None, map(str.strip, (before, asked["question_text"], after)))),
                options=tuple(str(option) for option in asked["options"]),
                right=asked["correct_answer_option"].strip().upper(),
                groups=groups,
            )
            for number, asked in content["questions"].items()
        ]
    except (RecursionError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no file of FaceXBench's questions ({type(error).__name__}: {error})") from error


def load_facebench(folder: str | os.PathLike) -> list[ChoiceQuestion]:
    """
    Read the benchmark.

    Args:
        folder (`str` or `os.PathLike`): The folder with the `.jsonl` files.

    Returns:
        `list[ChoiceQuestion]`: all but the open questions; sliced by type, view and level.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if a line is no such question, or a picture is missing or lies outside of the folder.
    """
    folder = Path(folder)
    files = sorted(folder.glob("**/*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.jsonl, expected the folder of FaceBench")
    questions = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if row["question_type"] in TYPES:
                    questions.append(_question(row, folder))
                elif row["question_type"] != "OEQ":
                    raise ValueError(f"question type {row['question_type']!r}, expected {', '.join(TYPES)} or OEQ")
            except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}: {type(error).__name__}: {error}") from error
    return questions


def _question(row: dict, folder: Path) -> ChoiceQuestion:
    options = [str(option) for option in row.get("options") or _TRUTH]
    lettered = [_LETTERED.match(option) for option in options]
    if all(lettered):  # the letters are put before the options again when the question is asked
        options = [found.group(2).strip() for found in lettered]
    metadata = row.get("metadata") or {}
    groups = {"type": row["question_type"]}
    for name, key in (("view", "view"), ("level", "attribute_level")):
        if key in metadata:
            groups[name] = str(metadata[key])
    images = folder / "images"
    return ChoiceQuestion(
        id=str(row["question_id"]),
        images=(file_below(images if images.is_dir() else folder, row["image_id"]),),
        question=row["text"].strip(),
        options=tuple(options),
        right=_right(row["gt_answer"], options),
        several=row["question_type"] == "MCQ",
        groups=groups,
    )


def _right(answer, options: list[str]) -> str:
    """Letters of the right options, which are given as letters, as texts, as a list of either, or as true or false."""
    letters = LETTERS[: len(options)]
    parts = answer if isinstance(answer, list) else [answer]
    if len(parts) == 1 and isinstance(parts[0], str) and parts[0] not in options and len(parts[0]) > 1:
        split = re.split(r"\s*[,;]\s*", parts[0].strip())
        parts = list(parts[0].strip()) if set(parts[0].strip()) <= set(letters) else split
    found = set()
    lowered = [option.lower() for option in options]
    for part in parts:
        text = str(part).strip()
        lettered = _LETTERED.match(text)
        if text.lower() in lowered:
            found.add(letters[lowered.index(text.lower())])
        elif text in letters and text:
            found.add(text)
        elif lettered and lettered.group(1) in letters:
            found.add(lettered.group(1))
        elif text.lower() in ("yes", "no") and lowered == ["true", "false"]:
            found.add("A" if text.lower() == "yes" else "B")
        else:
            raise ValueError(f"the right answer {text!r} is none of the options {options}")
    return "".join(sorted(found))


LOADERS = {"facexbench": load_facexbench, "facebench": load_facebench}
"""Suite -> what reads its folder."""

__all__ = ["DATASET_IDS", "LOADERS", "load_facebench", "load_facexbench"]
