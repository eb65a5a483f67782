"""Face records of any data set as training rows, and early words about what a data set lacks."""

import datasets
import numpy as np
import pytest
from PIL import Image

from unif2ace.training.data.language.questions import Question
from unif2ace.training.data.records import FaceRecord
from unif2ace.training.data.rows import FaceRows, as_records, check_row, check_rows, make_rows
from unif2ace.training.synthetic.painted.dataset import painted_face


PICTURE = Image.new("RGB", (16, 16))
ASKED = [Question("attribute", "headwear", f"Question {i}?", f"answer {i}") for i in range(9)]


def test_each_record_gives_the_rows_it_can():
    records = [
        FaceRecord(image=PICTURE, captions=["a man with a hat", "a hat"]),
        FaceRecord(image=PICTURE, questions=ASKED),
        FaceRecord(image=PICTURE),  # nothing is known about it
    ]
    rows = FaceRows(records, passes=2)
    assert rows.tasks == ["t2i", "mmu", "mmu"] * 2 and len(rows) == 6
    assert rows[0]["text"] in records[0].captions
    assert rows[1]["turns"][0][1] in records[0].captions  # without questions: a request for the caption
    asked = rows[2]["turns"]
    assert len(asked) == 7 and set(asked) < {(q.question, q.answer) for q in ASKED}
    assert rows[5]["turns"] != asked  # other words in the other pass
    assert rows[2]["turns"] == asked and rows[2]["image"] is PICTURE
    with pytest.raises(IndexError):
        rows[6]
    with pytest.raises(ValueError, match="none of 1 records"):
        FaceRows(records[2:])


def test_attributes_are_put_into_words():
    face = painted_face(0, "validation")
    rows = FaceRows([FaceRecord(image=face.image, attributes=face.attributes)], passes=8)
    prompts = {rows[i]["text"] for i in range(len(rows)) if rows.tasks[i] == "t2i"}
    assert len(prompts) > 4
    turns = [rows[i]["turns"] for i in range(len(rows)) if rows.tasks[i] == "mmu"]
    assert any(len(turn) > 1 for turn in turns) and any(len(turn) == 1 for turn in turns)


def test_precomputed_columns_come_along():
    records = [FaceRecord(captions=["a"]), FaceRecord(captions=["b"])]
    rows = FaceRows(records, features={"codes": np.array([[1, 2], [3, 4]])})
    assert [rows[i]["codes"].tolist() for i in range(4)] == [[1, 2], [3, 4], [1, 2], [3, 4]]
    check_rows(rows)
    with pytest.raises(ValueError, match="'codes' has 1 entries for 2"):
        FaceRows(records, features={"codes": np.zeros((1, 2))})


def test_what_is_missing_is_named_before_training():
    with pytest.raises(ValueError, match="'text', the prompt; it has task, image"):
        check_row({"task": "t2i", "image": PICTURE, "text": None})
    with pytest.raises(ValueError, match="'turns'"):
        check_row({"task": "mmu", "image": PICTURE})
    with pytest.raises(ValueError, match="lacks a picture"):
        check_row({"task": "mmu", "turns": [("a", "b")]})
    with pytest.raises(ValueError, match="'t2v'"):
        check_row({"task": "t2v"})
    table = {"task": ["t2i", "mmu"], "text": ["a hat", None], "codes": [[1], [1]]}
    with pytest.raises(ValueError, match="row 1 of eval_dataset is a mmu row and lacks the column 'turns'"):
        check_rows(datasets.Dataset.from_dict(table), "eval_dataset")
    with pytest.raises(ValueError, match="lacks the column 'task'; it has prompt"):
        check_rows(datasets.Dataset.from_dict({"prompt": ["a"]}))
    with pytest.raises(ValueError, match="no rows"):
        check_rows([])


def test_a_folder_of_faces_is_a_source(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (number * 100, 0, 0)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"face number {number}")
    data = {"source": "faces", "train": {"path": str(tmp_path)}, "passes": 3}
    train_rows, held_out = make_rows(data, seed=0)
    assert held_out is None and len(train_rows) == 2 * 2 * 3
    assert {train_rows[i]["text"] for i in range(2)} == {"face number 0", "face number 1"}
    assert train_rows[2]["turns"][0][1].startswith("face number")
    with pytest.raises(ValueError, match="does not take"):
        make_rows({"source": "faces", "train": {"folder": str(tmp_path)}}, seed=0)
    with pytest.raises(ValueError, match="data.train is missing"):
        make_rows({"source": "faces"}, seed=0)


def test_a_table_of_records_is_a_source():
    faces = [painted_face(i, "validation", size=16) for i in range(2)]
    table = datasets.Dataset.from_list(
        [
            {
                "image": face.image,
                "captions": face.captions,
                "questions": [vars(question) for question in face.questions],
                "attributes": face.attributes,
                "unrelated": 1,
            }
            for face in faces
        ]
    )
    records = as_records(table)
    assert len(records) == 2
    assert records[1].captions == faces[1].captions and records[1].questions == faces[1].questions
    assert records[1].attributes == faces[1].attributes
    assert as_records(datasets.Dataset.from_dict({"task": ["t2i"]})) is None  # rows already
    with pytest.raises(ValueError, match="empty"):
        as_records([])
