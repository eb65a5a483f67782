import itertools
import json

import numpy as np
import pytest
from datasets import load_dataset

from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.data.language.captions import parse_caption
from unif2ace.training.synthetic.faces import Faces
from unif2ace.training.synthetic.painted.dataset import (
    LASTING_ATTRIBUTES,
    attributes_of,
    identity_of,
    main,
    painted_face,
    painted_faces,
    person_picture,
    render,
)


SIZE = 16


def test_a_face_depends_on_seed_split_and_index_alone():
    first, again = painted_face(3, "test", seed=1, size=SIZE), painted_face(3, "test", seed=1, size=SIZE)
    assert first.attributes == again.attributes == attributes_of(3, "test", 1)
    assert first.captions == again.captions and first.questions == again.questions
    assert np.array_equal(first.image, again.image)
    others = [attributes_of(3, "train", 1), attributes_of(4, "test", 1), attributes_of(3, "test", 0)]
    assert all(other != first.attributes for other in others)
    assert identity_of(3, "test", 1) == identity_of(3, "test", 1) != identity_of(4, "test", 1)


def test_a_face_is_a_valid_record_whose_captions_are_true():
    record = painted_face(0, "validation", size=SIZE).validate()
    assert record.image.size == (SIZE, SIZE) and len(record.captions) == 3 and record.questions
    for caption in record.captions:
        for name, value in parse_caption(caption).items():
            assert record.attributes[name] == value and record.visible[name]


@pytest.mark.parametrize("arguments", [{"split": "dev"}, {"index": -1}])
def test_impossible_faces_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        attributes_of(**({"index": 0} | arguments))


def test_streaming_paints_on_demand_and_divides_among_workers():
    faces = painted_faces("train", 10**9, size=SIZE)
    row = next(iter(faces))
    record = painted_face(0, size=SIZE)
    assert np.array_equal(row["image"], record.image) and row["attributes"] == record.attributes
    assert row["questions"][0]["answer"] == record.questions[0].answer
    assert set(row["visible"]) == set(ATTRIBUTES)

    small = painted_faces("train", 5, size=SIZE, num_shards=2)
    assert small.num_shards == 2
    parts = [[row["id"] for row in small.shard(2, index)] for index in range(2)]
    assert list(itertools.chain(*parts)) == [painted_face(index, size=SIZE).id for index in range(5)]


def test_files_are_resumed_extended_and_readable_while_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr("unif2ace.training.synthetic.painted.dataset.SHARD_PICTURES", 2)
    paths = render(tmp_path, "test", 5, size=SIZE)
    assert [path.name for path in paths] == [f"test-0000{number}.parquet" for number in range(3)]
    rows = load_dataset("parquet", data_files=[str(path) for path in paths], cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    faces = Faces(tmp_path, "test", at_least=5)
    pictures = faces.pictures()
    assert pictures.shape == (5, SIZE, SIZE, 3) and pictures.dtype == np.uint8 and faces.side == SIZE
    for index in range(5):
        record = painted_face(index, "test", size=SIZE)
        assert np.array_equal(pictures[index], record.image) and np.array_equal(rows[index]["image"], record.image)
        assert faces.attributes[index] == record.attributes and faces.visible[index] == record.visible
        assert rows[index]["captions"] == record.captions
    assert faces.labels == {name: list(values) for name, values in ATTRIBUTES.items()}

    paths[1].unlink()  # as an interrupted run of several processes may leave it
    unfinished = Faces(tmp_path, "test")
    assert len(unfinished) == 3
    with pytest.raises(FileNotFoundError, match="holds 3 test faces"):
        Faces(tmp_path, "test", at_least=4)
    whole = paths[0].read_bytes()
    assert render(tmp_path, "test", 7, size=SIZE, workers=2)[:3] == paths and paths[0].read_bytes() == whole
    unfinished.reload()
    assert len(unfinished) == 6  # the last file had only one face when it was read
    assert np.array_equal(Faces(tmp_path, "test").pictures()[:5], pictures) and len(Faces(tmp_path, "test")) == 7


def test_a_folder_never_mixes_seeds_sizes_or_painters(tmp_path):
    render(tmp_path, "test", 1, size=SIZE)
    with pytest.raises(ValueError, match="overwrite"):
        render(tmp_path, "test", 1, size=SIZE, seed=1)
    settings = json.loads((tmp_path / "test.manifest").read_text())
    (tmp_path / "test.manifest").write_text(json.dumps(settings | {"checksum": 0}))
    with pytest.raises(ValueError, match="checksum"):
        render(tmp_path, "test", 1, size=SIZE)
    render(tmp_path, "test", 2, size=SIZE, seed=1, overwrite=True)
    assert len(Faces(tmp_path, "test")) == 2


def test_command_line(tmp_path, capsys):
    arguments = ["--split", "test", "--count", "2", "--size", "16", "--out", str(tmp_path)]
    main(arguments)
    assert (tmp_path / "test-00000.parquet").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--seed", "3"])
    assert stop.value.code == 1 and capsys.readouterr().err.strip().count("\n") == 0


def test_people_keep_what_lasts(tmp_path):
    pictures = [person_picture(5, picture) for picture in range(4)]
    attributes = [picture[0] for picture in pictures]
    for name in LASTING_ATTRIBUTES:
        assert len({face[name] for face in attributes}) == 1
    assert all(picture[1] == pictures[0][1] for picture in pictures)
    assert len({tuple(face.items()) for face in attributes}) == 4
    render(tmp_path, "train", 30, size=SIZE, pictures_per_person=3)
    faces = Faces(tmp_path)
    assert list(faces.people().values()) == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(10)]
    assert set(LASTING_ATTRIBUTES) <= set(faces.lasting()) and "hair_color" not in faces.lasting()
    halves = [Faces(tmp_path, half=half) for half in (0, 1)]
    assert [len(half) for half in halves] == [15, 15] and not set(halves[0].identities) & set(halves[1].identities)
