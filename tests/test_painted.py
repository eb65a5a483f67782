import itertools
import json

import numpy as np
import pytest
from datasets import load_dataset

from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.data.language.captions import parse_caption
from unif2ace.training.synthetic.painted.dataset import (
    LASTING_ATTRIBUTES,
    attributes_of,
    identity_of,
    load_rendered,
    main,
    paint_people,
    painted_face,
    painted_faces,
    person_picture,
    render,
    write_parquet,
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


def test_parquet_is_read_back_and_never_overwritten_unasked(tmp_path):
    path = write_parquet(tmp_path / "faces.parquet", "test", 3, size=SIZE)
    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 3 and np.array_equal(rows[2]["image"], painted_face(2, "test", size=SIZE).image)
    assert rows[1]["captions"] == painted_face(1, "test", size=SIZE).captions
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        write_parquet(path, "test", 2, size=SIZE)
    assert path.read_bytes() == before
    write_parquet(path, "test", 2, size=SIZE, overwrite=True)
    assert path.read_bytes() != before and [entry.name for entry in tmp_path.glob("*.part")] == []


def test_render_resumes_extends_and_is_readable_while_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr("unif2ace.training.synthetic.painted.dataset.CHUNK_PICTURES", 2)
    pictures = np.load(render(tmp_path, "test", 5, size=SIZE))
    assert pictures.shape == (5, SIZE, SIZE, 3) and pictures.dtype == np.uint8
    for index in range(5):
        assert np.array_equal(pictures[index], painted_face(index, "test", size=SIZE).image)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["test.json", "test.npy"]

    # as an interrupted run leaves it: the first chunk, a later one, no joined file
    (tmp_path / "test.npy").unlink()
    np.save(tmp_path / "test-00000.npy", pictures[:2])
    np.save(tmp_path / "test-00002.npy", pictures[4:])
    assert np.array_equal(load_rendered(tmp_path, "test"), pictures[:2])
    with pytest.raises(FileNotFoundError, match="holds 2 painted"):
        load_rendered(tmp_path, "test", at_least=3)
    assert np.array_equal(np.load(render(tmp_path, "test", 5, size=SIZE)), pictures)
    longer = np.load(render(tmp_path, "test", 7, size=SIZE))
    assert len(longer) == 7 and np.array_equal(longer[:5], pictures)


def test_a_cache_never_mixes_seeds_sizes_or_painters(tmp_path):
    render(tmp_path, "test", 1, size=SIZE)
    with pytest.raises(ValueError, match="overwrite"):
        render(tmp_path, "test", 1, size=SIZE, seed=1)
    settings = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps(settings | {"checksum": 0}))
    with pytest.raises(ValueError, match="checksum"):
        render(tmp_path, "test", 1, size=SIZE)
    assert len(np.load(render(tmp_path, "test", 2, size=SIZE, seed=1, overwrite=True))) == 2


def test_command_line(tmp_path, capsys):
    main(["--split", "test", "--count", "2", "--size", "16", "--out", str(tmp_path)])
    assert (tmp_path / "test.npy").exists()
    arguments = ["--split", "test", "--count", "1", "--size", "16", "--parquet", str(tmp_path / "a.parquet")]
    main(arguments)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1 and capsys.readouterr().err.count("\n") == 1


def test_people_keep_what_lasts(tmp_path):
    pictures = [person_picture(5, picture) for picture in range(4)]
    attributes = [picture[0] for picture in pictures]
    for name in LASTING_ATTRIBUTES:
        assert len({face[name] for face in attributes}) == 1
    assert all(picture[1] == pictures[0][1] for picture in pictures)
    assert len({tuple(face.items()) for face in attributes}) == 4
    everyone = paint_people(tmp_path, "train", 2, 3, size=SIZE)
    assert everyone.shape == (2, 3, SIZE, SIZE, 3) and not np.array_equal(everyone[0, 0], everyone[0, 1])
    assert np.array_equal(paint_people(tmp_path, "train", 2, 3, size=SIZE), everyone)
