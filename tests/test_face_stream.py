"""A face data set as a stream: folders, broken samples, resuming, dividing among machines and workers."""

import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from unif2ace.training.data.rows import FaceRows
from unif2ace.training.data.sources import BrokenSamples, TooManyBrokenSamplesError, open_faces


COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "orange", "navy", "teal", "olive", "purple")


def picture_bytes(color="red", size=(12, 12), format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures with a text each, some in a folder below."""
    (tmp_path / "more").mkdir()
    for number, color in enumerate(COLORS):
        path = tmp_path / ("more" if number % 3 == 0 else ".") / f"{number:02}.png"
        path.write_bytes(picture_bytes(color))
        path.with_suffix(".txt").write_text(f"a {color} face\n\nthe same face, {color}\n", encoding="utf-8")
    return tmp_path


def ids(stream):
    return [record.id for record in stream]


def test_folder_of_texts(folder):
    records = list(open_faces(folder))
    assert len(records) == len(COLORS)
    record = next(record for record in records if record.id == "01.png")
    assert record.captions == ["a green face", "the same face, green"]
    assert record.image.mode == "RGB" and record.image.getpixel((0, 0)) == (0, 128, 0)
    assert record.source == str(folder)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_folder_of_metadata(tmp_path, name):
    for color in COLORS[:3]:
        (tmp_path / f"{color}.png").write_bytes(picture_bytes(color))
    if name.endswith("csv"):
        lines = ["file_name,text", *(f"{color}.png,a {color} face" for color in COLORS[:3])]
    else:
        lines = [json.dumps({"file_name": f"{color}.png", "text": f"a {color} face"}) for color in COLORS[:3]]
    (tmp_path / name).write_text("\n".join(lines))
    records = list(open_faces(f"folder:{tmp_path}"))
    assert [record.captions for record in records] == [[f"a {color} face"] for color in COLORS[:3]]


def test_long_metadata_are_read_whole_and_once(tmp_path):
    (tmp_path / "face.png").write_bytes(picture_bytes())
    lines = [json.dumps({"file_name": "face.png", "text": f"face number {n} " + "x" * (n % 97)}) for n in range(500)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    stream = open_faces(tmp_path)
    assert stream.num_shards > 1
    numbers = [int(record.captions[0].split()[2]) for record in stream]
    assert numbers == list(range(500))


def test_rows_for_training(folder):
    rows = FaceRows(open_faces(folder).table())
    assert rows.tasks.count("t2i") == rows.tasks.count("mmu") == len(COLORS)
    assert rows[0]["text"].endswith("face") or "face, " in rows[0]["text"]


def break_folder(folder):
    """Every way in which a sample of a folder can be broken, one each."""
    content = picture_bytes(size=(64, 64), format="JPEG")
    broken = {
        "truncated.jpg": content[: len(content) // 2],
        "text.png": b"this is no picture",
        "empty.png": b"",
        "silent.png": picture_bytes(),
        "textless.png": picture_bytes(),
        "binary.png": picture_bytes(),
        "bomb.png": picture_bytes(size=(9000, 9000)),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("a face")
    (folder / "silent.txt").write_text(" \n ")
    (folder / "textless.txt").unlink()
    (folder / "binary.txt").write_bytes(b"caption of \x80\xff")
    return set(broken)


def test_broken_samples_are_named_and_passed_over(folder):
    broken = break_folder(folder)
    stream = open_faces(folder)
    assert len(ids(stream)) == len(COLORS)
    assert stream.broken.count == len(broken)
    problems = dict(stream.broken.named)
    assert set(problems) == broken
    for name, words in {
        "truncated.jpg": "truncated",
        "text.png": "not a picture that Pillow can read",
        "silent.png": "empty",
        "textless.png": "missing",
        "binary.png": "not UTF-8",
        "bomb.png": "limit is 64,000,000",
    }.items():
        assert words.lower() in problems[name].lower(), problems[name]


def test_too_many_broken_samples_end_the_stream(folder):
    broken = break_folder(folder)
    with pytest.raises(TooManyBrokenSamplesError, match="more than 3 broken samples .*--max-broken"):
        list(open_faces(folder, max_broken=3))
    assert len(list(open_faces(folder, max_broken=len(broken)))) == len(COLORS)
    with pytest.raises(ValueError, match="max_broken=-2"):
        BrokenSamples("x", -2)


def test_names_may_not_leave_the_folder(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_bytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(secret)
    names = ["../secret.png", str(secret), "link.png", "a\0b.png", "absent.png"]
    (inside / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "text": "a face"}) for name in names)
    )
    stream = open_faces(inside)
    assert ids(stream) == []
    problems = [problem for _, problem in stream.broken.named]
    assert [("leaves the folder" in problem) for problem in problems] == [True, True, False, False, False]
    assert "is a link out of" in problems[2] and "zero byte" in problems[3] and "is missing" in problems[4]


def test_wrong_types_and_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(picture_bytes())
    rows = [{"file_name": "a.png", "text": "good"}, {"file_name": "a.png", "text": 7}, {"file_name": 7, "text": "x"}]
    lines = [json.dumps(row) for row in rows] + ["{broken", "[1, 2]", json.dumps({"text": "no picture"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    stream = open_faces(tmp_path)
    assert [record.captions for record in stream] == [["good"]]
    problems = " | ".join(problem for _, problem in stream.broken.named)
    assert stream.broken.count == 5
    for words in ("has type int, expected a text", "picture has type int", "not JSON", "JSON list", "is missing"):
        assert words in problems, problems


def test_archive_members_may_not_leave_the_archive(tmp_path):
    def add(archive, name, content, kind=tarfile.REGTYPE):
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(content), kind, "/etc/hostname"
        archive.addfile(member, io.BytesIO(content))

    path = tmp_path / "faces.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("good", "../escape", "/absolute"):
            add(archive, f"{name}.png", picture_bytes())
            add(archive, f"{name}.txt", b"a face")
        add(archive, "link.png", b"", tarfile.SYMTYPE)
    stream = open_faces(path)
    assert [(record.id, record.captions) for record in stream] == [("good", ["a face"])]
    assert {name.partition(": ")[2] for name, _ in stream.broken.named} == {
        "../escape.png",
        "../escape.txt",
        "/absolute.png",
        "/absolute.txt",
        "link.png",
    }


def test_a_damaged_archive_is_a_broken_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3):
            for name, content in ((f"{number}.png", picture_bytes()), (f"{number}.txt", b"a face")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:2600])
    stream = open_faces(str(tmp_path / "*.tar"))
    assert ids(stream)[:3] == ["0", "1", "2"]
    assert stream.broken.count == 1 and stream.broken.named[0][0] == "b.tar"


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_resumes_where_it_stopped(folder, stop):
    break_folder(folder)
    stream = open_faces(folder)
    everything = ids(stream)
    stream, first = open_faces(folder), []
    for record in stream:
        first.append(record.id)
        if len(first) > stop:
            break
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = open_faces(folder)
    resumed.load_state_dict(state)
    assert first + ids(resumed) == everything
    assert resumed.broken.count == 7


def test_machines_and_workers_share_the_stream(folder):
    everything = sorted(ids(open_faces(folder)))
    for world_size in (2, 3):
        parts = [ids(open_faces(folder).split_by_node(rank, world_size)) for rank in range(world_size)]
        assert sorted(sum(parts, [])) == everything
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    loader = torch.utils.data.DataLoader(open_faces(folder), batch_size=None, num_workers=2)
    assert sorted(record.id for record in loader) == everything


def test_shuffling_follows_seed_and_epoch(folder):
    stream = open_faces(folder, seed=1).shuffle(buffer_size=4)
    first = ids(stream)
    assert first != ids(open_faces(folder)) and sorted(first) == sorted(ids(open_faces(folder)))
    assert ids(open_faces(folder, seed=1).shuffle(buffer_size=4)) == first
    stream.set_epoch(1)
    assert ids(stream) != first


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'celebb', expected one of folder,"):
        open_faces("celebb:/data")
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        open_faces(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_faces(tmp_path / "missing")
    with pytest.raises(ValueError, match="not on the Hub: give its place, celebv-hq:FOLDER"):
        open_faces("celebv-hq")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="cut.parquet is not a parquet file that can be read"):
        open_faces(tmp_path / "cut.parquet")


def test_painted_faces_are_a_source_too():
    records = list(open_faces("painted:3", split="validation"))
    assert [record.id for record in records] == [f"painted-0-validation-{n}" for n in range(3)]
    assert all(len(record.attributes) == 48 and record.captions and record.questions for record in records)


def test_a_broken_sample_counts_once_however_often_it_is_read(folder):
    break_folder(folder)
    stream = open_faces(folder, max_broken=7)
    for epoch in range(3):
        stream.set_epoch(epoch)
        assert len(ids(stream)) == len(COLORS) and stream.broken.count == 7
