"""
FaceXBench (Narayan et al., arXiv 2501.10360): 5,000 multiple-choice questions of 14 tasks about faces, over one or
several pictures.

The folder is that of the authors' repository: `benchmark/*.json` and the pictures below it. A file is
`{"category", "sub-category", "dataset", "question_type": "MCQ", "num_images": "single" | "multiple", "prepend_text",
"postpend_text", "questions": {"1": {"image_paths", "question_text", "options", "correct_answer_option", "answer"}}}`.
"""

import json
import os
from pathlib import Path

from .choices import ChoiceQuestion


DATASET_ID = "Kartik-3004/facexbench"


def load_facexbench(folder: str | os.PathLike) -> list[ChoiceQuestion]:
    """
    Read the benchmark.

    Args:
        folder (`str` or `os.PathLike`): The folder with `benchmark/` in it.

    Returns:
        `list[ChoiceQuestion]`: in the order of files and questions; sliced by category, task, data set and whether
        there are several pictures.

    Raises:
        FileNotFoundError: if there are no files of questions, or a picture is missing.
        ValueError: if a file is no such file.
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
                images=tuple(find_image(folder, name) for name in asked["image_paths"]),
                question=" ".join(filter(None, map(str.strip, (before, asked["question_text"], after)))),
                options=tuple(str(option) for option in asked["options"]),
                right=asked["correct_answer_option"].strip().upper(),
                groups=groups,
            )
            for number, asked in content["questions"].items()
        ]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no file of FaceXBench's questions ({type(error).__name__}: {error})") from error


def find_image(folder: Path, name: str) -> Path:
    """
    A picture that a benchmark names; never one outside of its folder.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if the name leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"the name {name!r} leads out of {folder}")
    if not path.is_file():
        raise FileNotFoundError(f"the picture {path} is missing; put the benchmark's pictures where it names them")
    return path


__all__ = ["DATASET_ID", "find_image", "load_facexbench"]
