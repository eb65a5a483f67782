"""Folders and tables as people's tools write them: read with their words, or named; nothing is lost in silence."""

import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from unif2ace.cli import main
from unif2ace.training.data.rows import read_faces
from unif2ace.training.data.sources import guess_columns, open_faces
from unif2ace.training.data.sources.readers import csv_form


CAPTIONS = ["a man with a hat", "a woman, smiling", "an old man with glasses", "a girl; she laughs"]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    add_pictures(place)
    return place


def add_pictures(place, count=4):
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        PILImage.new("RGB", (32, 32), (60 * number, 90, 200)).save(place / f"{number}.png")


def captions_of(source, **options):
    return {record.id: record.captions for record in open_faces(source, **options)}


WANTED = {f"{number}.png": [text] for number, text in enumerate(CAPTIONS)}


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows(name="text", **more):
    return [{"file_name": f"{number}.png", name: text, **more} for number, text in enumerate(CAPTIONS)]


def beside(suffix, full=False):
    def write(place):
        for number, text in enumerate(CAPTIONS):
            (place / f"{number}{'.png' if full else ''}{suffix}").write_text(text)

    return write


def csv_file(name, encoding="utf-8", delimiter=",", head="file_name,text", before=""):
    def write(place):
        text = [before + head.replace(",", delimiter)]
        text += [f'{number}.png{delimiter}"{caption}"' for number, caption in enumerate(CAPTIONS)]
        (place / name).write_bytes("\r\n".join(text).encode(encoding))

    return write


def parquet(place):
    Dataset.from_list(rows()).to_parquet(place / "metadata.parquet")


FORMS = {
    "txt": beside(".txt"),
    "caption of kohya": beside(".caption"),
    "name.png.txt of taggers": beside(".txt", full=True),
    "upper case": beside(".TXT"),
    "jsonl": lambda place: (place / "metadata.jsonl").write_text(lines(rows())),
    "jsonl with a mark": lambda place: (place / "metadata.jsonl").write_text(lines(rows()), encoding="utf-8-sig"),
    "jsonl of PowerShell": lambda place: (place / "metadata.jsonl").write_text(lines(rows()), encoding="utf-16"),
    "json lines in json": lambda place: (place / "metadata.json").write_text(lines(rows())),
    "caption inside of an object": lambda place: (place / "metadata.jsonl").write_text(
        lines(
            [{"file_name": f"{n}.png", "captions": {"short": text, "long": None}} for n, text in enumerate(CAPTIONS)]
        )
    ),
    "two columns of one name": lambda place: (place / "metadata.csv").write_text(
        "file_name,text,text\n" + "".join(f'{n}.png,"{text}",another\n' for n, text in enumerate(CAPTIONS))
    ),
    "csv of old Windows": csv_file("metadata.csv", "cp1252", ";", before="sep=;\r\n"),
    "csv of an old Mac": lambda place: (place / "metadata.csv").write_text(
        "file_name,text\r" + "".join(f'{n}.png,"{text}"\r' for n, text in enumerate(CAPTIONS)), newline=""
    ),
    "tabs and inches": lambda place: (place / "metadata.tsv").write_text(
        "file_name\ttext\theight\n" + "".join(f'{n}.png\t{text}\t5" 7\n' for n, text in enumerate(CAPTIONS))
    ),
    "name to list of captions": lambda place: (place / "captions.json").write_text(
        json.dumps({f"{number}.png": [text] for number, text in enumerate(CAPTIONS)})
    ),
    "json list": lambda place: (place / "metadata.json").write_text(json.dumps(rows())),
    "another column": lambda place: (place / "metadata.jsonl").write_text(lines(rows("blip_caption", score=0.5))),
    "a column of any name": lambda place: (place / "metadata.jsonl").write_text(lines(rows("was_man_sieht"))),
    "name to caption": lambda place: (place / "captions.json").write_text(
        json.dumps({f"{number}.png": text for number, text in enumerate(CAPTIONS)})
    ),
    "meta_cap.json of kohya": lambda place: (place / "meta_cap.json").write_text(
        json.dumps({str(number): {"caption": text} for number, text in enumerate(CAPTIONS)})
    ),
    "windows paths": lambda place: (place / "metadata.jsonl").write_text(
        lines([{"file_name": f".\\{number}.png", "text": text} for number, text in enumerate(CAPTIONS)])
    ),
    "parquet": parquet,
    "csv": csv_file("metadata.csv"),
    "csv with a mark": csv_file("metadata.csv", "utf-8-sig"),
    "csv of a European Excel": csv_file("metadata.csv", "utf-8-sig", ";"),
    "csv with sep": csv_file("metadata.csv", "utf-8", ";", before="sep=;\r\n"),
    "unicode text of Excel": csv_file("metadata.csv", "utf-16", "\t"),
    "tsv": csv_file("metadata.tsv", "utf-8", "\t"),
    "csv without names": lambda place: (place / "captions.csv").write_text(
        "".join(f'{number}.png,"{text}"\n' for number, text in enumerate(CAPTIONS))
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_captions(folder, form):
    FORMS[form](folder)
    assert captions_of(folder) == WANTED


def test_a_folder_of_splits_gives_the_split_and_names_the_others(tmp_path, capsys):
    for name, count in (("train", 4), ("test", 2)):
        add_pictures(tmp_path / name, count)
        (tmp_path / name / "metadata.jsonl").write_text(lines(rows()[:count]))
    assert captions_of(tmp_path) == WANTED
    assert "the folder test is another split" in capsys.readouterr().err
    assert len(captions_of(tmp_path, split="test")) == 2
    with pytest.raises(ValueError, match="has the splits test, train, but split='validation'"):
        open_faces(tmp_path, split="validation")


def test_a_table_beside_the_splits_is_read_or_named(tmp_path):
    add_pictures(tmp_path / "train")
    table = [{"file_name": f"train/{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    (tmp_path / "metadata.jsonl").write_text(lines(table))
    assert captions_of(tmp_path) == {f"train/{name}": captions for name, captions in WANTED.items()}
    add_pictures(tmp_path / "test")
    assert "metadata.jsonl lies beside the splits and is not read: put it into one" in open_faces(tmp_path).notes


def test_metadata_that_hold_the_pictures_themselves(tmp_path):
    features = Features({"image": Image(), "text": Value("string")})
    table = [{"image": PILImage.new("RGB", (16, 16)), "text": text} for text in CAPTIONS]
    Dataset.from_list(table, features=features).to_parquet(tmp_path / "metadata.parquet")
    assert [record.captions for record in open_faces(tmp_path)] == [[text] for text in CAPTIONS]


def test_a_folder_of_tables_about_pictures_elsewhere(folder, tmp_path):
    (folder / "metadata.jsonl").write_text(lines(rows()))
    os.rename(folder / "metadata.jsonl", tmp_path / "metadata.jsonl")
    place = tmp_path / "words"
    place.mkdir()
    os.rename(tmp_path / "metadata.jsonl", place / "metadata.jsonl")
    assert captions_of(place, images=folder) == WANTED


def test_a_list_of_tags_is_one_caption(folder):
    table = [{"file_name": f"{number}.png", "tags": ["1girl", "hat"]} for number in range(4)]
    (folder / "metadata.jsonl").write_text(lines(table))
    assert set(map(tuple, captions_of(folder).values())) == {("1girl, hat",)}


def test_numbers_that_are_none_are_no_captions(folder):
    odd = '{"file_name": "0.png", "text": NaN}\n{"file_name": "1.png", "text": Infinity}\n'
    (folder / "metadata.jsonl").write_text(odd + lines(rows()[2:]))
    stream = open_faces(folder)
    assert [record.captions for record in stream] == [[text] for text in CAPTIONS[2:]]
    problems = [problem for _, problem in stream.broken.named]
    assert "has no caption" in problems[0] and "has type float, expected a text" in problems[1]


def test_packed_files_are_named_with_what_to_do(folder):
    (folder / "metadata.jsonl.gz").write_bytes(b"\x1f\x8b")
    assert "1 .gz files are not read, first metadata.jsonl.gz" in open_faces(folder, need_text=False).notes
    for name in ("faces.csv.gz", "faces.zip"):
        (folder / name).write_bytes(b"PK")
        with pytest.raises(ValueError, match="is no data file.*unpack it first"):
            open_faces(folder / name)


def test_tables_in_subfolders_name_their_own_pictures(tmp_path):
    for name in ("10_zora", "5_reg"):
        add_pictures(tmp_path / name)
        (tmp_path / name / "metadata.jsonl").write_text(lines(rows()))
    found = captions_of(tmp_path)
    assert len(found) == 8 and found["10_zora/1.png"] == found["5_reg/1.png"] == [CAPTIONS[1]]


def test_where_a_table_says_nothing_the_text_file_does(folder):
    beside(".txt")(folder)
    (folder / "metadata.jsonl").write_text(lines([{"file_name": f"{n}.png", "mood": n} for n in range(2)]))
    assert captions_of(folder) == WANTED


def test_captions_jsonl_replaces_the_captions_of_metadata_but_keeps_the_rest(folder, capsys):
    (folder / "metadata.jsonl").write_text(
        lines([{**row, "identity": "0012", "id": f"face-{n}"} for n, row in enumerate(rows())])
    )
    (folder / "captions.jsonl").write_text(lines([{"file_name": "face-1", "captions": ["a better caption"]}]))
    records = {record.id: record for record in open_faces(folder)}
    assert records["face-1"].captions == ["a better caption"] and records["face-0"].captions == [CAPTIONS[0]]
    assert {record.identity for record in records.values()} == {"0012"}
    assert "the captions of captions.jsonl (1) replace those of metadata.jsonl" in capsys.readouterr().err


def test_what_is_not_read_is_named(folder, capsys, tmp_path):
    (folder / "metadata.jsonl").write_text(lines(rows(mood="merry", place="Rome"))[:-1])
    (folder / "captions.xlsx").write_bytes(b"PK")
    (folder / "photo.heic").write_bytes(b"ftypheic")
    (folder / "readme.txt").write_text("hello")
    (folder / "scores.csv").write_text("run,score\n1,0.5\n")
    PILImage.new("RGB", (32, 32)).save(folder / "extra.png")
    stream = open_faces(folder)
    assert len(list(stream)) == 4
    told = " | ".join(stream.notes)
    for words in (
        "mood, place",
        "1 .xlsx files are not read, first captions.xlsx",
        "1 .heic files",
        "1 text files have no picture of the same name, first readme.txt",
        "scores.csv is not read: none of its columns names pictures",
        "1 pictures are named by no table of their folder, first extra.png",
    ):
        assert words in told, told
        assert words in capsys.readouterr().err or words in told
    assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    shown = capsys.readouterr().out
    assert "not read: 1 .heic files" in shown and "named by no table of their folder" in shown
    (folder / "metadata.jsonl").unlink()
    assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "without a caption or question: 5 of 5 pictures" in capsys.readouterr().out


# Guessing


def test_columns_are_guessed_from_many_rows(folder):
    odd = [{"file_name": "0.png", "text": None}, *rows()[1:]]
    (folder / "metadata.jsonl").write_text(lines(odd))
    assert list(captions_of(folder, need_text=False).values())[1:] == [[text] for text in CAPTIONS[1:]]
    other = [{"file_name": "0.png", "text": 7}, *rows()[1:]]
    assert guess_columns(other).caption == "text"
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A man."}]
    assert guess_columns([{"image": "0.png", "conversations": None}, {"image": "1.png", "conversations": turns}]) == (
        guess_columns({"image": "1.png", "conversations": turns})
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_first_row_of_nulls_hides_no_column(tmp_path, kind):
    add_pictures(tmp_path)
    table = [{"image": "0.png", "caption": None, "question": None, "answer": None}]
    table += [
        {"image": f"{n}.png", "caption": CAPTIONS[n], "question": "Who?", "answer": "a man"} for n in range(1, 4)
    ]
    if kind == "jsonl":
        (tmp_path / "faces.jsonl").write_text(lines(table))
    else:
        Dataset.from_list(table).to_parquet(tmp_path / "faces.parquet")
    stream = open_faces(tmp_path / f"faces.{kind}")
    records = list(stream)
    assert [record.captions for record in records] == [[text] for text in CAPTIONS[1:]]
    assert all(record.questions[0].answer == "a man" for record in records) and stream.broken.count == 1


def test_an_explicit_map_wins(folder):
    (folder / "metadata.jsonl").write_text(lines([{**row, "second": "the other text"} for row in rows()]))
    assert set(map(tuple, captions_of(folder, columns="image=file_name,caption=second").values())) == {
        ("the other text",)
    }
    with pytest.raises(ValueError, match="has no column 'third'"):
        open_faces(folder, columns="image=file_name,caption=third")


# Text stays text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_text_stays_text(tmp_path, kind):
    add_pictures(tmp_path)
    words = ["None", "NA", "True", "12"]
    table = [
        {"image": f"{n}.png", "id": f"{n:06}", "identity": "0012", "caption": word, "question": "q", "answer": word}
        for n, word in enumerate(words)
    ]
    if kind == "csv":
        text = ",".join(table[0]) + "\n" + "".join(",".join(row.values()) + "\n" for row in table)
        (tmp_path / "faces.csv").write_text(text)
    elif kind == "jsonl":
        (tmp_path / "faces.jsonl").write_text(lines(table))
    else:
        Dataset.from_list(table).to_parquet(tmp_path / "faces.parquet")
    records = list(open_faces(tmp_path / f"faces.{kind}"))
    assert [record.captions for record in records] == [[word] for word in words]
    assert [record.questions[0].answer for record in records] == words
    assert [record.id for record in records] == ["000000", "000001", "000002", "000003"]
    assert {record.identity for record in records} == {"0012"}


def test_numbers_are_names_and_answers_without_a_point(tmp_path):
    add_pictures(tmp_path)
    table = [{"image": "0.png", "identity": 7.0, "id": 3, "question": "How many?", "answer": 2}]
    table += [{"image": "1.png", "identity": float("nan"), "id": 4, "question": "How many?", "answer": 3}]
    Dataset.from_list(table).to_parquet(tmp_path / "faces.parquet")
    first, second = open_faces(tmp_path / "faces.parquet")
    assert (first.identity, first.id, first.questions[0].answer) == ("7", "3", "2") and second.identity is None


# CSV


def test_a_broken_row_of_a_csv_is_a_broken_row(tmp_path, capsys):
    add_pictures(tmp_path)
    (tmp_path / "faces.csv").write_text(
        'file_name,text\n0.png,a man, with a hat\n1.png,"no end\n2.png,fine\n3.png,"two\nlines"\n'
    )
    stream = open_faces(tmp_path / "faces.csv")
    assert {record.id: record.captions for record in stream} == {"2.png": ["fine"], "3.png": ["two\nlines"]}
    problems = dict(stream.broken.named)
    assert "has 3 fields, expected 2" in problems["faces.csv row 1"] and "not CSV" in problems["faces.csv row 2"]


def test_a_large_csv_is_divided_and_resumed(tmp_path):
    path = tmp_path / "big.csv"
    path.write_text("name;text\n" + "".join(f'{n:05};"a; {n}"\n' for n in range(2000)))
    from unif2ace.training.data.sources.readers import read_rows

    assert csv_form(path).delimiter == ";"
    stream = read_rows([path])
    assert stream.num_shards == 16
    everything = [row["name"] for row in stream]
    assert everything == [f"{n:05}" for n in range(2000)]
    parts = [[row["name"] for row in stream.shard(4, part)] for part in range(4)]
    assert sorted(sum(parts, [])) == everything and all(parts)


# Fine-tuning


def test_most_captions_missing_is_refused_unless_told(folder, capsys):
    (folder / "0.txt").write_text("a man")
    with pytest.raises(ValueError, match="3 of 4 pictures .* have no caption that was understood.*--trigger-only"):
        read_faces(str(folder), "zora")
    assert [record.captions for record in read_faces(str(folder), "zora", trigger_only=True)][1] == ["zora"]
    assert "3 of 4 pictures are trained with 'zora' alone" in capsys.readouterr().err


def test_unread_captions_are_not_taken_for_none(folder):
    (folder / "captions.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="4 of 4 pictures.*Not read: 1 .xlsx files"):
        read_faces(str(folder), "zora")


def test_a_folder_without_any_words_is_refused_unless_told(folder, capsys):
    with pytest.raises(ValueError, match="4 of 4 pictures .* have no caption that was understood.*--trigger-only"):
        read_faces(str(folder), "zora")
    records = read_faces(str(folder), "zora", trigger_only=True)
    assert {tuple(record.captions) for record in records} == {("zora",)}
    assert "4 of 4 pictures are trained with 'zora' alone" in capsys.readouterr().err


def test_pictures_with_questions_alone_would_be_painted_by_the_trigger_alone(folder, capsys):
    table = [{"file_name": f"{n}.png", "question": "Who is it?", "answer": text} for n, text in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text(lines(table))
    assert read_faces(str(folder))[0].questions[0].answer == CAPTIONS[0]
    with pytest.raises(ValueError, match="4 of 4 pictures .* no caption that was understood.*--trigger-only"):
        read_faces(str(folder), "zora")


def test_a_trigger_within_a_word_is_not_there(folder):
    beside(".txt")(folder)
    assert [record.captions for record in read_faces(str(folder), "an")][0] == ["an, a man with a hat"]


# Downloads of the Hub


def test_links_into_the_cache_of_a_snapshot_are_followed_and_others_not(tmp_path):
    cache = tmp_path / "hub" / "datasets--someone--faces"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    add_pictures(tmp_path / "made")
    (cache / "blobs").mkdir()
    for number in range(4):
        os.rename(tmp_path / "made" / f"{number}.png", cache / "blobs" / f"hash{number}")
        (snapshot / f"{number}.png").symlink_to(f"../../blobs/hash{number}")
    (cache / "blobs" / "table").write_text(lines(rows()))
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/table")
    assert captions_of(snapshot) == WANTED
    other = tmp_path / "hub" / "datasets--other--faces" / "blobs"
    other.mkdir(parents=True)
    (other / "secret").write_bytes((cache / "blobs" / "hash0").read_bytes())
    (snapshot / "0.png").unlink()
    (snapshot / "0.png").symlink_to("../../../datasets--other--faces/blobs/secret")
    stream = open_faces(snapshot)
    assert len(list(stream)) == 3 and "is a link out of" in stream.broken.named[0][1]


def test_a_downloaded_data_set_with_its_tables_in_a_folder(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    features = Features({"image": Image(), "text": Value("string")})
    for split in ("train", "test"):
        table = [{"image": PILImage.new("RGB", (16, 16)), "text": f"a face of {split}"}]
        Dataset.from_list(table, features=features).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\n---\n")
    assert [record.captions for record in open_faces(tmp_path)] == [["a face of train"]]
    assert "1 files are not of the split train" in capsys.readouterr().err


# The pipeline's own pictures


@pytest.mark.parametrize("kind", ["np", "pt", "pt batch", "np batch", "bfloat16", "bool mask", "dict", "column"])
def test_every_form_of_a_picture_is_the_same_picture(tmp_path, kind):
    from unif2ace.modeling_unif2ace import UniF2aceImageProcessor, load_image

    levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    if kind == "bfloat16":
        levels = levels // 255 * 255
    picture = PILImage.fromarray(levels)
    array = levels.astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    picture.save(tmp_path / "a.png")
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    form = {
        "np": array,
        "pt": tensor,
        "np batch": array[None],
        "pt batch": tensor[None],
        "bfloat16": tensor.bfloat16(),
        "bool mask": levels > 127,
        "dict": content,
        "column": Dataset.from_dict({"image": [content]}, features=Features({"image": Image()}))["image"],
    }[kind]
    if kind == "bool mask":
        assert set(np.unique(np.asarray(load_image(form)))) == {0, 255}
        return
    processor = UniF2aceImageProcessor.from_resolution(16)
    wanted = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], wanted)
    if kind != "column":
        assert np.array_equal(load_image(form), picture)


@pytest.mark.parametrize("low, high", [(-1, 1), (0, 255), (0, 1.5)])
def test_floats_that_are_no_shares_are_refused(low, high):
    from unif2ace.modeling_unif2ace import UniF2aceImageProcessor

    array = np.linspace(low, high, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        UniF2aceImageProcessor.from_resolution(16)(array)
