"""Cropping by landmarks, near-duplicates, splits by person, and the commands that do all of it to a data set."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from painted_landmarks import painted_landmarks
from PIL import Image, ImageDraw, ImageEnhance
from skimage.data import astronaut

from unif2ace.cli import main
from unif2ace.modeling_unif2ace.face_alignment_unif2ace import ARCFACE_TEMPLATE, align_face, similarity_transform
from unif2ace.training.data.cleaning import NearDuplicates, parse_splits, split_of
from unif2ace.training.data.face_crops import (
    FoundFace,
    choose_face,
    crop_face,
    insightface_finder,
    make_finder,
    uniface_finder,
)
from unif2ace.training.data.records import FaceRecord
from unif2ace.training.data.sources import BrokenSampleError, open_faces
from unif2ace.training.synthetic.painted.dataset import attributes_of, identity_of, person_picture
from unif2ace.training.synthetic.painted.painter import paint


# Eileen Collins, NASA, in the public domain; the landmarks are those that MTCNN finds.
LANDMARKS = np.array([(205.0, 101.7), (246.8, 103.7), (224.7, 129.0), (201.7, 139.2), (245.3, 141.9)])


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(astronaut())


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(float)


def test_the_tight_crop_is_that_of_the_face_encoder(photograph):
    crop, outside = crop_face(photograph, LANDMARKS, size=112, face_scale=1.0)
    assert outside == 0
    assert np.abs(pixels(crop) - pixels(align_face(photograph, LANDMARKS))).mean() < 0.5


@pytest.mark.parametrize("size", [96, 256])
def test_landmarks_come_to_lie_where_they_should(photograph, size):
    marked = pixels(photograph)
    for x, y in LANDMARKS.round().astype(int):
        marked[y - 1 : y + 2, x - 1 : x + 2] = (255, 0, 255)
    crop, _ = crop_face(Image.fromarray(marked.astype(np.uint8)), LANDMARKS.round(), size)
    found = pixels(crop)
    # five points of one head do not fit the template exactly: the best fit counts
    template = ((np.asarray(ARCFACE_TEMPLATE) + 0.5 - 56) * 0.78 + 56) * size / 112 - 0.5
    matrix = similarity_transform(LANDMARKS.round(), template)
    for x, y in LANDMARKS.round() @ matrix[:, :2].T + matrix[:, 2]:
        near = found[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].reshape(-1, 3)
        assert np.abs(near - (255, 0, 255)).sum(-1).min() < 200, (x, y)


def test_a_turned_shrunk_photograph_gives_the_same_crop(photograph):
    plain, _ = crop_face(photograph, LANDMARKS, 64)
    turned = photograph.rotate(25, Image.Resampling.BICUBIC, expand=False)
    angle, center = np.deg2rad(-25), np.array([255.5, 255.5])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (LANDMARKS - center) @ rotation.T + center
    same, _ = crop_face(turned, landmarks, 64)
    assert np.abs(pixels(same) - pixels(plain))[8:-8, 8:-8].mean() < 6
    large = photograph.resize((2048, 2048), Image.Resampling.BICUBIC)
    same, _ = crop_face(large, (LANDMARKS + 0.5) * 4 - 0.5, 64)  # much shrunk: averaged, not sampled
    assert np.abs(pixels(same) - pixels(plain)).mean() < 4


def test_a_face_at_the_edge_is_told(photograph):
    _, outside = crop_face(photograph, LANDMARKS - (190, 60), 64)
    assert 0.2 < outside < 0.8
    with pytest.raises(ValueError, match="expected .5, 2."):
        crop_face(photograph, LANDMARKS[:4])
    with pytest.raises(ValueError, match="coincide"):
        crop_face(photograph, np.ones((5, 2)))


def test_painted_heads_are_turned_upright():
    differences = {"as painted": [], "aligned": []}
    for number in range(4):
        plain = attributes_of(number) | {"pose": "frontal", "lighting": "even", "hair_length": "bald"}
        plain |= {"headwear": "none", "headphones": "no", "mask": "no"}
        identity = identity_of(number)
        pictures, crops = [], []
        for tilt in ("upright", "tilted left", "tilted right"):
            attributes = plain | {"tilt": tilt}
            picture = paint(attributes, identity, 128)
            pictures.append(pixels(picture))
            crops.append(pixels(crop_face(picture, painted_landmarks(attributes, identity, 128), 64, 1.0)[0]))
        for name, (first, *others) in (("as painted", pictures), ("aligned", crops)):
            inner = slice(first.shape[0] // 4, -first.shape[0] // 4)
            differences[name] += [np.abs(first - other)[inner, inner].mean() for other in others]
    assert np.mean(differences["aligned"]) < 0.35 * np.mean(differences["as painted"])


def test_painted_landmarks_fit_the_template():
    for number in range(20):
        landmarks = painted_landmarks(attributes_of(number), identity_of(number), 112)
        matrix = similarity_transform(landmarks, ARCFACE_TEMPLATE)
        placed = landmarks @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(placed - np.asarray(ARCFACE_TEMPLATE)).max() < 16


# Detectors: their packages bring no weights, so objects with their interfaces stand in


def test_detectors_are_asked_in_their_own_terms(photograph):
    seen = []

    def answer(image):
        seen.append(image)
        return [
            SimpleNamespace(landmarks=LANDMARKS, kps=LANDMARKS, confidence=0.9, det_score=0.9),
            SimpleNamespace(landmarks=LANDMARKS / 4, kps=LANDMARKS / 4, confidence=0.99, det_score=0.99),
        ]

    for finder in (
        uniface_finder(detector=SimpleNamespace(detect=answer)),
        insightface_finder(app=SimpleNamespace(get=answer)),
    ):
        faces = finder(photograph, "astronaut.png")
        assert np.array_equal(seen[-1], np.asarray(photograph)[:, :, ::-1]) and seen[-1].flags.c_contiguous
        assert choose_face(faces).landmarks is not None and choose_face(faces).size == faces[0].size


def test_which_face_is_taken():
    small, unsure = FoundFace(LANDMARKS / 10), FoundFace(LANDMARKS, 0.2)
    with pytest.raises(BrokenSampleError, match="there is no face"):
        choose_face([])
    with pytest.raises(BrokenSampleError, match="sure enough"):
        choose_face([unsure])
    with pytest.raises(BrokenSampleError, match="4 pixels from eyes to mouth, expected 12"):
        choose_face([small, unsure])


def test_unknown_detectors_are_explained():
    with pytest.raises(ValueError, match="detector 'haar' is unknown"):
        make_finder("haar")


def test_crop_command(photograph, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photograph.save(tmp_path / "in" / "a.png")
    photograph.save(tmp_path / "in" / "b.png")
    photograph.crop((230, 0, 512, 512)).save(tmp_path / "in" / "edge.png")
    (tmp_path / "in" / "a.txt").write_text("an astronaut")
    entries = {"a.png": LANDMARKS.tolist(), "edge.png": (LANDMARKS - (230, 0)).tolist()}
    (tmp_path / "landmarks.json").write_text(json.dumps(entries))
    arguments = ["data", "crop", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "64"]
    arguments += ["--detector", f"landmarks:{tmp_path / 'landmarks.json'}"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert "1 faces; 2 pictures without a usable one" in output.out
    assert "left out b.png: there is no face" in output.err and "lie beyond the picture" in output.err
    (record,) = open_faces(tmp_path / "out")
    assert record.image.size == (64, 64) and record.captions == ["an astronaut"] and record.id == "a.png"
    assert main(arguments) == 2
    assert "exists: choose another place" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0 and len(list(open_faces(tmp_path / "out"))) == 1


def test_landmarks_of_celeba(photograph, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photograph.save(tmp_path / "in" / "000001.png")
    names = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    numbers = " ".join(str(value) for value in LANDMARKS.ravel())
    (tmp_path / "list_landmarks.txt").write_text(f"1\n{names}\n000001.png {numbers}\n")
    finder = make_finder(f"landmarks:{tmp_path / 'list_landmarks.txt'}")
    assert np.allclose(finder(photograph, "000001.png")[0].landmarks, LANDMARKS)
    (tmp_path / "short.txt").write_text(f"{names}\n000001.png 1 2 3\n")
    with pytest.raises(ValueError, match="expected five points"):
        make_finder(f"landmarks:{tmp_path / 'short.txt'}")


# Near-duplicates


def altered(picture, seed):
    """What happens to pictures on the web: recompressed, resized, a little brighter."""
    rng = random.Random(seed)
    side = rng.choice((48, 96, 160))
    picture = ImageEnhance.Brightness(picture.resize((side, side), Image.Resampling.LANCZOS))
    return picture.enhance(rng.uniform(0.9, 1.1))


def test_altered_copies_are_found_and_other_faces_are_not():
    duplicates = NearDuplicates()
    pictures = [paint(attributes_of(number), identity_of(number), 128) for number in range(60)]
    assert [duplicates.add(picture, str(number)) for number, picture in enumerate(pictures)].count(None) >= 59
    found = [duplicates.add(altered(picture, number), "copy") for number, picture in enumerate(pictures)]
    assert sum(name == str(number) for number, name in enumerate(found)) >= 50
    assert all(name in (str(number), None, "copy") for number, name in enumerate(found))


@pytest.mark.parametrize("distance", [0, 3, 16])
def test_bands_find_exactly_what_comparing_all_finds(distance, monkeypatch):
    rng = random.Random(distance)
    base = [rng.getrandbits(256) for _ in range(30)]
    values = []
    for _ in range(300):
        value = rng.choice(base)
        for place in rng.sample(range(256), rng.randint(0, 20)):
            value ^= 1 << place
        values.append(value)
    monkeypatch.setattr("unif2ace.training.data.cleaning.perceptual_hash", lambda image: image)
    monkeypatch.setattr("unif2ace.training.data.cleaning.thumbnail", lambda image: np.zeros((24, 24, 3), np.uint8))
    duplicates, kept = NearDuplicates(distance), []
    for number, value in enumerate(values):
        found = duplicates.add(value, str(number))
        near = [other for other, earlier in kept if (earlier ^ value).bit_count() <= distance]
        assert (found is None) == (not near) and (found is None or found in near)
        if found is None:
            kept.append((str(number), value))


# Splits


def test_no_person_is_in_two_splits():
    splits = parse_splits("train=0.8,validation=0.1,test=0.1")
    records = [FaceRecord(identity=str(n % 300), id=str(n), source="x") for n in range(3000)]
    chosen = [split_of(record, splits) for record in records]
    people = {name: {r.identity for r, split in zip(records, chosen, strict=True) if split == name} for name in splits}
    assert not (people["train"] & people["validation"] or people["train"] & people["test"])
    assert {name: round(len(found) / 300, 1) for name, found in people.items()} == splits
    assert [split_of(record, splits) for record in reversed(records)] == chosen[::-1]
    assert [split_of(record, splits, seed=1) for record in records] != chosen
    alone = [split_of(FaceRecord(id=str(n), source="x"), splits) for n in range(2000)]
    assert 0.75 < alone.count("train") / 2000 < 0.85


@pytest.mark.parametrize("text", ["train", "train=0.5", "train=0.5,test=0.6", "train=2,test=-1", "a/b=1", "=1"])
def test_bad_splits_are_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse_splits(text)


def test_clean_command(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for person in range(8):
        for picture in range(3):
            name = f"{person}-{picture}.png"
            paint(*person_picture(person, picture), 64).save(folder / name)
            rows.append({"file_name": name, "text": f"person {person}", "identity": f"p{person}"})
    paint(*person_picture(0, 0), 64).resize((80, 80)).save(folder / "copy.png")
    rows.append({"file_name": "copy.png", "text": "a copy", "identity": "somebody else"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["data", "clean", str(folder), "-o", str(tmp_path / "out"), "--splits", "train=0.5,test=0.5"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "left out copy.png: looks like 0-0.png" in out and "1 near-duplicates left out" in out
    train, test = (list(open_faces(tmp_path / "out" / name)) for name in ("train", "test"))
    assert len(train) + len(test) == 24
    assert not {record.identity for record in train} & {record.identity for record in test}
    assert {record.captions[0] for record in train if record.identity == train[0].identity} == {
        f"person {train[0].identity[1:]}"
    }
    assert main(["data", "clean", str(folder), "-o", str(tmp_path / "x"), "--splits", "train=3"]) == 2
    assert not (tmp_path / "x").exists()


def drawn(number):
    """Pictures of one person as a child would draw them: the same face, other clothes, ground, mouth."""
    colours = ("red", "green", "blue", "orange", "purple")
    picture = Image.new("RGB", (128, 128), colours[number % 5])
    draw = ImageDraw.Draw(picture)
    draw.rectangle((24, 96, 104, 128), fill=colours[(number // 4 + number + 1) % 5])
    draw.ellipse((40, 24, 88, 96), fill="bisque")
    draw.ellipse((50, 50, 58, 56), fill="black")
    draw.ellipse((70, 50, 78, 56), fill="black")
    draw.arc((52, 62, 76, 84), 0 if number % 2 else 180, 180 if number % 2 else 360, fill="darkred", width=3)
    return picture


def test_different_pictures_of_one_person_are_kept_and_copies_are_not():
    duplicates = NearDuplicates()
    pictures = [drawn(number) for number in range(20)]
    assert [duplicates.add(picture, str(number)) for number, picture in enumerate(pictures)] == [None] * 20
    found = [duplicates.add(altered(picture, number), "copy") for number, picture in enumerate(pictures)]
    assert sum(name == str(number) for number, name in enumerate(found)) >= 17
    assert all(name in (str(number), None) for number, name in enumerate(found))


def test_an_empty_split_is_refused_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"file_name": f"{n}.png", "text": "zora", "identity": "zora"} for n in range(20)]
    for number in range(20):
        drawn(number).save(folder / f"{number}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["data", "clean", str(folder), "-o", str(tmp_path / "out"), "--splits", "train=0.8,validation=0.2"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "would be empty: 20 pictures of 1 known people" in error and "--split-by picture" in error
    assert not list((tmp_path / "out").glob("*/*"))
    assert main([*arguments, "--split-by", "picture"]) == 0
    assert len(list((tmp_path / "out" / "validation").rglob("*.png"))) > 0
