"""Every known face data set, on small files with exactly the columns and files that its authors publish."""

import io
import json
import tarfile

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from unif2ace.training.data.language.attributes import ATTRIBUTES, CELEBV_HQ_NAMES, VAGUE_VALUES
from unif2ace.training.data.sources import SOURCES, ColumnMap, guess_columns, open_faces
from unif2ace.training.data.sources.known import (
    _FACTS,
    CELEBA_NAMES,
    FAIRFACE_AGES,
    FAIRFACE_GENDERS,
    FAIRFACE_RACES,
    KNOWN_LABELS,
    attributes_of_labels,
)
from unif2ace.training.synthetic.painted.dataset import render


NUM_FACES = 4


def picture(number=0, size=(24, 24)):
    return PILImage.new("RGB", size, (40 * number, 80, 120))


def png(number=0):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture(number % 6).save(folder / name)


def true_labels(*names):
    return {name: name in names for name in CELEBA_NAMES}


SMILING_MAN = true_labels("Male", "Smiling", "Eyeglasses", "Goatee", "Black_Hair", "Young")
WOMAN = true_labels("No_Beard", "Blond_Hair", "Brown_Hair", "Wearing_Earrings", "Wearing_Lipstick", "Bangs")


def check_people(records):
    """`SMILING_MAN` and `WOMAN` were read right."""
    man, woman = records[0], records[1]
    assert {
        "gender": "man",
        "mouth": "smiling",
        "eyewear": "glasses",
        "beard": "goatee",
    }.items() <= man.attributes.items()
    assert man.attributes["hair_color"] == "black" and man.attributes["age"] == "young"
    assert woman.attributes["gender"] == "woman" and woman.attributes["beard"] == "none"
    assert "hair_color" not in woman.attributes  # blond and brown at once: nobody knows
    assert woman.excluded["age"] == ("young",) and "smiling" in woman.excluded["mouth"]
    assert any("glasses" in caption for caption in man.captions)
    assert not any("round" in caption or "square glasses" in caption for caption in man.captions)
    assert man.questions and woman.questions
    assert man.labels["smiling"] == "yes" and woman.labels["smiling"] == "no"


# Labels


def test_every_label_of_both_tables_is_known():
    names = {name.lower() for name in CELEBA_NAMES} | {name for names in CELEBV_HQ_NAMES.values() for name in names}
    assert len(CELEBA_NAMES) == 40 and names - {"blonde_hair"} <= KNOWN_LABELS
    for attribute, when_true, when_false, excluded in _FACTS.values():
        allowed = ATTRIBUTES[attribute] + VAGUE_VALUES.get(attribute, ())
        assert {when_true, when_false, *excluded} - {None} <= set(allowed)


def test_contradicting_labels_say_nothing_and_the_precise_one_wins():
    attributes, _ = attributes_of_labels({"eyeglasses": True, "sunglasses": True, "no_beard": False, "goatee": True})
    assert attributes == {"eyewear": "sunglasses", "beard": "goatee"}
    assert attributes_of_labels({"bald": True, "long_hair": True})[0] == {}
    assert attributes_of_labels({"no_beard": True, "goatee": True})[0] == {}
    attributes, excluded = attributes_of_labels({"black_hair": False, "brown_hair": False, "gray_hair": False})
    assert attributes == {} and excluded == {"hair_color": ("black", "brown", "gray")}


def test_questions_about_labels_are_answered_both_ways_and_rightly():
    answers = {"yes": 0, "no": 0}
    labels = SMILING_MAN | {"Wearing_Hat": False}
    rows = Dataset.from_list([{"image": {"bytes": png(), "path": None}, **labels} for _ in range(40)])
    rows = rows.map(lambda row, number: {"image": {"bytes": png(number % 6), "path": None}}, with_indices=True)
    from unif2ace.training.data.sources.known import label_record
    from unif2ace.training.data.sources.stream import FaceStream

    keyed = rows.add_column("__key__", [str(number) for number in range(40)]).to_iterable_dataset()
    for record in FaceStream(keyed, label_record, "labels"):
        for question in record.questions:
            assert question.kind not in ("reasoning", "comparison", "count")
            if question.kind == "yes_no":
                answers[question.answer] += 1
            if "hat" in question.question.split() and question.kind == "yes_no":
                assert question.answer == "no"
            if "smiling" in question.question:
                assert question.answer == "yes"
    assert min(answers.values()) > 20


# CelebA


def celeba_flwrlabs(folder):
    features = Features({"image": Image(), "celeb_id": Value("int64"), **dict.fromkeys(CELEBA_NAMES, Value("bool"))})
    rows = [{"image": picture(), "celeb_id": 7, **SMILING_MAN}, {"image": picture(1), "celeb_id": 8, **WOMAN}]
    Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")


def celeba_attrs(folder):
    features = Features({"image": Image(), **dict.fromkeys(CELEBA_NAMES, Value("int64")), "prompt": Value("string")})
    rows = [
        {"image": picture(), **{name: 1 if value else -1 for name, value in labels.items()}, "prompt": "a face"}
        for labels in (SMILING_MAN, WOMAN)
    ]
    Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")


def celeba_hq_files(folder):
    write_pictures(folder / "CelebA-HQ-img", ["0.jpg", "1.jpg"])
    lines = ["2", " ".join(CELEBA_NAMES)]
    for number, labels in enumerate((SMILING_MAN, WOMAN)):
        lines.append(f"{number}.jpg  " + " ".join("1" if value else "-1" for value in labels.values()))
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("write", [celeba_flwrlabs, celeba_attrs, celeba_hq_files])
@pytest.mark.parametrize("named", [True, False])
def test_celeba(tmp_path, write, named):
    write(tmp_path)
    records = list(open_faces(f"celeba:{tmp_path}" if named else tmp_path))
    assert len(records) == 2
    check_people(records)
    assert records[0].identity == ("7" if write is celeba_flwrlabs else None)


def test_celeba_of_its_authors(tmp_path):
    write_pictures(tmp_path / "img_align_celeba", ["000001.jpg", "000002.jpg"])
    lines = ["2", " ".join(CELEBA_NAMES)]
    lines += [
        f"{number:06}.jpg " + " ".join("1" if value else "-1" for value in labels.values())
        for number, labels in ((1, SMILING_MAN), (2, WOMAN), (3, WOMAN))
    ]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join([*lines, "000001.jpg 1 -1"]))
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 2937\n")
    stream = open_faces(tmp_path)
    records = list(stream)
    check_people(records)
    assert [record.identity for record in records] == ["2880", "2937"]
    problems = dict(stream.broken.named)
    assert "missing" in problems["000003.jpg"] and "has 2 values, expected 40" in problems["000001.jpg"]


def test_celeba_dialog(tmp_path):
    write_pictures(tmp_path / "image", ["0.jpg", "1.jpg", "2.jpg"])
    (tmp_path / "classification_label").mkdir()
    (tmp_path / "classification_label" / "fine_grained.txt").write_text(
        "3\nBangs Eyeglasses Beard Smiling Age\n0.jpg 0 5 3 4 5\n1.jpg 2 0 0 0 1\n2.jpg 9 0 0 0 1\n"
    )
    (tmp_path / "text").mkdir()
    entries = {"0.jpg": {"attribute_wise_captions": {"Bangs": "He has no bangs."}, "overall_caption": "An old man."}}
    (tmp_path / "text" / "captions.json").write_text(json.dumps(entries))
    (tmp_path / "text" / "request.txt").write_text("0.jpg Make the bangs longer please.\n")
    stream = open_faces(f"celeba-dialog:{tmp_path}")
    first, second = stream
    assert first.captions == ["He has no bangs.", "An old man."]
    wanted = {"bangs": "no", "eyewear": "sunglasses", "beard": "beard", "mouth": "laughing", "age": "elderly"}
    assert first.attributes == wanted
    assert second.attributes == {"bangs": "yes", "eyewear": "none", "beard": "none", "age": "young"}
    assert second.excluded == {"mouth": ("smiling", "laughing")} and second.captions
    assert stream.broken.named == [("2.jpg", "level Bangs is '9', expected 0 to 5")]


# CelebV


def celebv_info(clips):
    # another order than the usual one: it has to be read from the file
    names = {kind: list(reversed(CELEBV_HQ_NAMES[kind])) for kind in ("appearance", "action")}
    entries = {}
    for clip, (labels, emotion) in clips.items():
        entries[clip] = {
            "ytb_id": clip[:2],
            "duration": {"start_sec": 1.0, "end_sec": 9.0},
            "bbox": {"top": 0.1, "bottom": 0.9, "left": 0.1, "right": 0.9},
            "attributes": {
                **{kind: [int(name in labels) for name in names[kind]] for kind in names},
                "emotion": emotion,
            },
            "version": "v0.1",
        }
    return {"meta_info": {f"{kind}_mapping": names[kind] for kind in names}, "clips": entries}


def test_celebv_hq(tmp_path):
    segments = [
        {"emotion": "happy", "start_sec": 0.0, "end_sec": 2.0},
        {"emotion": "anger", "start_sec": 2.0, "end_sec": 5.0},
    ]
    clips = {
        "AB_1_0": (["male", "smile", "wearing_hat", "sunglasses"], {"sep_flag": False, "labels": "happy"}),
        "CD_2_0": (["blonde_hair", "wink", "drink", "wearing_mask"], {"sep_flag": True, "labels": segments}),
    }
    info = celebv_info(clips)
    info["clips"]["EF_3_0"] = {"ytb_id": "EF", "attributes": {"appearance": [1, 0], "action": []}}
    (tmp_path / "celebvhq_info.json").write_text(json.dumps(info))
    names = ["AB_1_0.jpg", "CD_2_0_1.5s.jpg", "CD_2_0_3s.jpg", "CD_2_0_f1.jpg", "EF_3_0.jpg", "stranger.jpg"]
    write_pictures(tmp_path / "frames", names)
    stream = open_faces(tmp_path)
    records = {record.id: record for record in stream}
    first = records["AB_1_0.jpg"]
    wanted = {"gender": "man", "mouth": "smiling", "headwear": "hat", "eyewear": "sunglasses", "emotion": "happy"}
    assert wanted.items() <= first.attributes.items()
    assert first.identity == "AB"
    second = records["CD_2_0_1.5s.jpg"]
    wanted = {"gender": "woman", "hair_color": "blond", "eyes": "winking", "mask": "yes", "emotion": "happy"}
    assert wanted.items() <= second.attributes.items()
    assert second.labels["drink"] == "yes"
    assert records["CD_2_0_3s.jpg"].attributes["emotion"] == "angry"
    assert "emotion" not in records["CD_2_0_f1.jpg"].attributes
    problems = dict(stream.broken.named)
    assert "2 appearance labels, expected 40" in problems["EF_3_0.jpg"]
    assert "no clip" in problems["stranger.jpg"]


def test_celebv_text(tmp_path):
    write_pictures(tmp_path / "frames", ["clip_0.jpg", "clip_1_0001.jpg"])
    for kind, lines in {
        "face40_details": ["He has brown hair.", "This man wears a hat."],
        "action": ["He talks"],
        "light_dir": ["The light comes from the left."],
    }.items():
        (tmp_path / "text" / kind).mkdir(parents=True)
        (tmp_path / "text" / kind / "clip_0.txt").write_text("\n".join(lines))
    (tmp_path / "text" / "action" / "clip_1.txt").write_text("She smiles.\n")
    records = {record.id: record for record in open_faces(tmp_path)}
    assert records["clip_0.jpg"].captions == [
        "He has brown hair. He talks. The light comes from the left.",
        "This man wears a hat. He talks. The light comes from the left.",
        "He has brown hair.",
        "This man wears a hat.",
    ]
    assert records["clip_1_0001.jpg"].captions == ["She smiles."]


# Captions


def test_mm_celeba_hq(tmp_path):
    write_pictures(tmp_path / "images", ["0.jpg", "27.jpg", "5.jpg"])
    (tmp_path / "text" / "celeba-caption").mkdir(parents=True)
    for number in (0, 27):
        lines = [f"The person has caption {place} of {number}." for place in range(10)]
        (tmp_path / "text" / "celeba-caption" / f"{number}.txt").write_text("\n".join(lines))
    stream = open_faces(tmp_path)
    records = list(stream)
    assert [record.id for record in records] == ["0.jpg", "27.jpg"] and len(records[1].captions) == 10
    assert stream.broken.named[0][0] == "5.jpg"


@pytest.mark.parametrize("form", ["json", "csv", "txt"])
def test_ffhq_text(tmp_path, form):
    write_pictures(tmp_path / "images", ["00001.png", "00002.png"])
    captions = {name: [f"She is face {name}, sentence {n}." for n in range(9)] for name in ("00001.png", "00002.png")}
    if form == "json":
        entries = [{"image": name, "captions": lines} for name, lines in captions.items()]
        (tmp_path / "ffhq-text.json").write_text(json.dumps(entries))
    elif form == "csv":
        lines = ["image," + ",".join(f"caption{n}" for n in range(9))]
        lines += [name + "," + ",".join(f'"{text}"' for text in texts) for name, texts in captions.items()]
        (tmp_path / "ffhq-text.csv").write_text("\n".join(lines))
    else:
        (tmp_path / "text").mkdir()
        for name, lines in captions.items():
            (tmp_path / "text" / name).with_suffix(".txt").write_text("\n".join(lines))
    records = list(open_faces(f"ffhq-text:{tmp_path}"))
    assert {record.id: record.captions for record in records} == captions


def test_facecaption_with_downloaded_pictures(tmp_path):
    rows = [
        {
            "url": f"https://host.example/a/{name}?size=1",
            "face_box": [6, 6, 18, 18],
            "laion_caption": "buy this poster",
            "face_caption": caption,
        }
        for name, caption in (("one.jpg", "A man."), ("two.jpg", "A woman."), ("gone.jpg", "Gone."), ("one.jpg", ""))
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "FaceCaption-v2.parquet")
    write_pictures(tmp_path / "pictures", ["one.jpg", "two.jpg"])
    stream = open_faces(f"facecaption:{tmp_path}", images=tmp_path / "pictures")
    records = list(stream)
    assert [record.captions for record in records] == [["A man."], ["A woman."]]
    assert records[0].image.size == (18, 18)  # 12 pixels of face, a quarter of that on each side
    assert sorted(problem.split()[0] for _, problem in stream.broken.named) == sorted(
        [str(tmp_path / "pictures"), "face_caption"]
    )


def test_facecaption_in_archives_of_a_downloader(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for number in range(2):
            entry = {"url": "https://host.example/x", "face_box": "[0.25, 0.25, 0.75, 0.75]", "face_caption": "A man."}
            if number:
                entry["face_box"] = [30, 30, 40, 40]
            for name, content in (("jpg", png(number)), ("json", json.dumps(entry).encode())):
                member = tarfile.TarInfo(f"00000000{number}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    stream = open_faces(f"facecaption:{tmp_path}")
    (record,) = stream
    assert record.image.size == (18, 18) and record.captions == ["A man."]
    assert "lies outside" in stream.broken.named[0][1]


def test_fairface(tmp_path):
    features = Features(
        {
            "image": Image(),
            "age": ClassLabel(names=list(FAIRFACE_AGES)),
            "gender": ClassLabel(names=list(FAIRFACE_GENDERS)),
            "race": ClassLabel(names=list(FAIRFACE_RACES)),
            "service_test": Value("bool"),
        }
    )
    faces = [(3, 0, 2, True), (1, 1, 0, False), (8, 1, 3, False)]
    rows = [dict(zip(features, (picture(), *face), strict=True)) for face in faces]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "validation.parquet")
    man, child, woman = open_faces(f"fairface:{tmp_path}", need_text=False)
    assert man.attributes == {"gender": "man", "age": "young"}
    assert man.labels == {"age": "20-29", "gender": "Male", "race": "Black"}
    assert child.attributes == {} and not child.captions
    assert woman.attributes == {"gender": "woman", "age": "elderly"}
    assert not any("Black" in text or "black" in text for record in (man, woman) for text in record.captions)


# Any table


def chat_rows():
    return [
        {
            "id": f"face-{number}",
            "image": {"bytes": png(number), "path": None},
            "caption": "A smiling woman.",
            "conversations": [
                {"from": "human", "value": "<image>\nIs she smiling?"},
                {"from": "gpt", "value": "Yes, she is."},
            ],
        }
        for number in range(NUM_FACES)
    ]


def test_unif2aced_columns_are_printed_and_guessed(tmp_path, capsys):
    Dataset.from_list(chat_rows()).to_parquet(tmp_path / "vqa.parquet")
    records = list(open_faces(f"unif2aced-1m:{tmp_path / 'vqa.parquet'}"))
    error = capsys.readouterr().err
    for words in ("caption (str): 'A smiling woman.'", "image (dict): a picture", "conversations (list)"):
        assert words in error, error
    assert "--columns image=image,caption=caption,conversations=conversations,id=id" in error
    assert records[0].captions == ["A smiling woman."]
    question = records[0].questions[0]
    assert (question.kind, question.question, question.answer) == ("open", "Is she smiling?", "Yes, she is.")
    assert [record.id for record in records] == [f"face-{number}" for number in range(NUM_FACES)]


@pytest.mark.parametrize(
    ("row", "guess"),
    [
        ({"img_path": "a/1.jpg", "refined_caption": "x"}, "image=img_path,caption=refined_caption"),
        ({"jpg": {"bytes": b"x", "path": "a"}, "txt": "a face"}, "image=jpg,caption=txt"),
        ({"jpg": {"bytes": b"x", "path": "a"}, "json": {"caption": "a"}}, "image=jpg,caption=json.caption"),
        ({"Image": "1.png", "Question": "q", "Answer": "a"}, "image=Image,question=Question,answer=Answer"),
        ({"picture_of": "1.png", "messages": [{"role": "user"}]}, "image=picture_of,conversations=messages"),
        ({"image": "1.png", "label": 3}, "image=image"),
    ],
)
def test_guesses(row, guess):
    assert str(guess_columns(row)) == guess


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json", "csv", "tar"])
def test_any_table_by_a_column_map(tmp_path, form):
    write_pictures(tmp_path, [f"{number}.png" for number in range(NUM_FACES)])
    rows = [{"pic": f"{n}.png", "who": "is it?", "reply": f"person {n}", "person": n} for n in range(NUM_FACES)]
    path = tmp_path / f"faces.{form}"
    columns = "image=pic,question=who,answer=reply,identity=person"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "json":
        path.write_text(json.dumps({"data": rows}))
    elif form == "tar":
        columns = "image=png,question=json.who,answer=json.reply,identity=json.person"
        with tarfile.open(path, "w") as archive:
            for number, row in enumerate(rows):
                for ending, content in (("png", png(number)), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    else:
        table = Dataset.from_list(rows)
        table.to_parquet(path) if form == "parquet" else table.to_csv(path)
    records = list(open_faces(path, columns=columns))
    assert [record.questions[0].answer for record in records] == [f"person {n}" for n in range(NUM_FACES)]
    assert [record.identity for record in records] == [str(n) for n in range(NUM_FACES)]


def test_saved_to_disk(tmp_path):
    Dataset.from_list(chat_rows(), features=None).save_to_disk(tmp_path / "saved")
    assert len(list(open_faces(tmp_path / "saved", columns="image=image,caption=caption"))) == NUM_FACES


def test_conversations_that_are_none_are_broken_samples(tmp_path):
    write_pictures(tmp_path, ["0.png"])
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}
    talks = [
        [
            asked,
            {"role": "assistant", "content": "A man."},
        ],
        [{"role": "assistant", "content": "An answer without a question."}],
        [{"role": "narrator", "content": "x"}],
        "text",
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"image": "0.png", "messages": talk}) for talk in talks))
    stream = open_faces(path)
    (record,) = stream
    assert (record.questions[0].question, record.questions[0].answer) == ("Who?", "A man.")
    problems = " | ".join(problem for _, problem in stream.broken.named)
    for words in ("answer without a question", "from 'narrator'", "expected a list of turns"):
        assert words in problems


def test_column_mistakes_are_explained(tmp_path):
    path = tmp_path / "faces.jsonl"
    path.write_text(json.dumps({"picture": "0.png", "words": 3}))
    with pytest.raises(ValueError, match="has no column 'pic' .image.; it has picture, words"):
        open_faces(path, columns="image=pic,caption=words")
    with pytest.raises(ValueError, match="no caption and no question .* it has picture, words"):
        open_faces(path)
    with pytest.raises(ValueError, match="names a question but no answer"):
        open_faces(path, columns="image=picture,question=words")
    with pytest.raises(ValueError, match="'colour=red', expected KIND=COLUMN"):
        ColumnMap.parse("image=a,colour=red")


def test_records_are_read_back(tmp_path):
    render(tmp_path, "test", 3)
    records = list(open_faces(tmp_path / "test-00000.parquet"))
    assert [record.id for record in records] == [f"painted-0-test-{n}" for n in range(3)]
    assert len(records[0].attributes) == 48 and records[0].questions[0].kind != "open" and records[0].visible


def test_registry_is_documented():
    assert {"folder", "celeba", "celebv-hq", "unif2aced-1m", "fairface"} <= set(SOURCES)
    for name, source in SOURCES.items():
        assert source.name == name and source.summary and source.licence
