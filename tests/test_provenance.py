"""Marks of generated pictures: the watermark's promises, metadata in files, `unif2ace verify`."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from unif2ace import UniF2acePipeline
from unif2ace.cli import main
from unif2ace.modeling_unif2ace.provenance_unif2ace import INFO_KEY, checkpoint_sha256, describe_checkpoint
from unif2ace.modeling_unif2ace.watermark_unif2ace import _pattern
from unif2ace.pipelines import Provenance, detect_watermark, embed_watermark, read_provenance, save_image


PROVENANCE = Provenance("unif2ace 0.1.0", "faces", "sha256:00", 7)
FORMATS = [("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"quality": 90}), ("WEBP", {"lossless": True})]


@pytest.fixture(scope="module")
def pipe():
    pipe = UniF2acePipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def face(pipe):
    """A generated face without marks."""
    return generate(pipe, watermark=False)[0]


def generate(pipe, seeds=(3,), **options):
    return pipe(
        "an old man with a grey beard",
        num_inference_steps=4,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **options,
    ).images


def through(image, format, **options):
    file = io.BytesIO()
    save_image(image, file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def test_pictures_are_marked_unless_told_otherwise(pipe, face):
    marked = generate(pipe)[0]
    assert detect_watermark(marked).found and not detect_watermark(face).found
    assert INFO_KEY not in face.info
    provenance = read_provenance(marked)
    assert provenance.seed == 3 and provenance.generator.startswith("unif2ace ")
    assert provenance.checkpoint == "unif2ace-faces" and provenance.revision.startswith("sha256:")
    assert marked.tobytes() == embed_watermark(face).tobytes()


def test_marks_do_not_depend_on_the_batch(pipe):
    alone, batch = generate(pipe, (5,)), generate(pipe, (3, 5))
    assert batch[1].tobytes() == alone[0].tobytes()
    assert [read_provenance(image).seed for image in batch] == [3, 5]


def test_seed_is_recorded_only_where_it_makes_the_picture(pipe):
    shared = torch.Generator().manual_seed(9)
    images = pipe("a man", num_inference_steps=2, num_images_per_prompt=2, generator=shared).images
    assert [read_provenance(image).seed for image in images] == [None, None]

    used = torch.Generator().manual_seed(9)
    first, second = (pipe("a man", num_inference_steps=2, generator=used).images[0] for _ in range(2))
    assert [read_provenance(first).seed, read_provenance(second).seed] == [9, None]
    assert first.tobytes() != second.tobytes()

    one = torch.Generator().manual_seed(9)
    images = pipe("a man", num_inference_steps=2, num_images_per_prompt=2, generator=[one, one]).images
    assert [read_provenance(image).seed for image in images] == [9, None]


@pytest.mark.parametrize("way", ["vary", "edit", "inpaint", "inpaint and keep pixels"])
def test_an_edited_picture_records_the_seed_that_edits_it_again(pipe, face, way):
    options = {"mask": "mouth"} if "inpaint" in way else {}
    if "keep" in way:
        options["keep_pixels"] = True
    change, used = getattr(pipe, way.split()[0]), torch.Generator().manual_seed(4)
    images = [change("a man", face, num_inference_steps=2, generator=used, **options).images[0] for _ in range(2)]
    assert [read_provenance(image).seed for image in images] == [4, None]


@pytest.mark.parametrize("size", [64, 256])
def test_change_is_small(face, size):
    picture = face.resize((size, size), Image.Resampling.BICUBIC)
    difference = np.asarray(embed_watermark(picture), dtype=float) - np.asarray(picture)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 40
    assert np.abs(difference).max() < 12


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: through(image, "PNG"),
        lambda image: through(image, "JPEG", quality=90),
        lambda image: image.crop((3, 1, 3 + image.width * 9 // 10, 1 + image.height * 9 // 10)),
        lambda image: through(image.crop((1, 2, 1 + image.width * 9 // 10, image.height)), "JPEG", quality=90),
        lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
        ImageOps.mirror,
        lambda image: scaled(image, 1.25),
        lambda image: scaled(image, 2.5),
        lambda image: through(scaled(image, 1.37), "JPEG", quality=90),
        lambda image: scaled(image, 0.8),
        lambda image: scaled(image, 1.91).crop((3, 2, round(1.91 * 0.9 * image.width), round(1.7 * image.height))),
        lambda image: scaled(image, 2.87),
    ],
    ids="png jpeg crop crop-jpeg twice mirror 1.25 2.5 1.37-jpeg 0.8 1.91-crop 2.87".split(),
)
def test_watermark_survives(face, size, change):
    marked = embed_watermark(face.resize((size, size), Image.Resampling.BICUBIC))
    assert detect_watermark(change(marked)).found


def scaled(image, factor):
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.BICUBIC)


def test_more_places_are_searched_at_the_same_false_alarm_rate(face):
    """The share of random keys that are seen where there is none is what was asked for, also in enlarged pictures."""
    rate, keys = 0.05, [f"key {number}" for number in range(60)]
    for picture in (face, scaled(face, 1.3)):
        found = sum(detect_watermark(picture, key, rate).found for key in keys)
        assert found <= 9  # 3 are expected; more than 9 happen once in a thousand times


@pytest.mark.parametrize("size", [64, 128, 256])
def test_flat_ground_changes_by_two_levels_at_most(face, size):
    grey = np.full((size, size, 3), 128) + np.random.default_rng(0).normal(0, 0.62, (size, size, 1))
    ramp = np.repeat(np.linspace(20, 230, size)[None, :, None], size, axis=0).repeat(3, axis=2)
    edge = np.full((size, size, 3), 40.0)
    edge[:, size // 2 :] = 200
    for flat in (grey, ramp, edge):
        picture = Image.fromarray(np.rint(flat).astype(np.uint8))
        difference = np.abs(np.asarray(embed_watermark(picture), dtype=int) - np.asarray(picture, dtype=int))
        if flat is edge:  # up to the edge itself
            difference = np.delete(difference, range(size // 2 - 2, size // 2 + 2), axis=1)
        assert 0 < difference.max() <= 2
        assert detect_watermark(embed_watermark(picture)).found
    # what a flat picture may not get, a rough one does
    rough = Image.fromarray(np.random.default_rng(0).integers(60, 200, (size, size, 3), dtype=np.uint8))
    assert np.abs(np.asarray(embed_watermark(rough), dtype=int) - np.asarray(rough, dtype=int)).max() > 4


@pytest.mark.parametrize("strength", [2.4, 1.5])  # of sides of 64, and from 164 pixels on
def test_pictures_that_version_0_1_marked_are_found(face, strength):
    noise = strength * _pattern("unif2ace")[..., None]
    old = Image.fromarray(np.clip(np.rint(np.asarray(face) + noise), 0, 255).astype(np.uint8))
    for change in (old, through(old, "JPEG", quality=90), scaled(old, 1.25), old.crop((3, 4, 61, 61))):
        assert detect_watermark(change).found


def test_another_key_finds_nothing(face):
    marked = embed_watermark(face, key="mine")
    assert detect_watermark(marked, key="mine").found and not detect_watermark(marked).found


def test_pattern_is_the_same_everywhere():
    # pictures marked by one version must be found by the next
    assert np.round(_pattern("unif2ace")[0, :4], 4).tolist() == [0.28, 0.4253, -0.2193, -0.9673]


def test_false_alarm_rate_sets_the_threshold(face):
    assert detect_watermark(face, false_alarm_rate=1e-9).threshold > detect_watermark(face).threshold
    with pytest.raises(ValueError, match="false_alarm_rate is 2"):
        detect_watermark(face, false_alarm_rate=2)
    with pytest.raises(ValueError, match="16 x 16 pixels, too few"):
        detect_watermark(face.resize((16, 16)))


def test_odd_pictures(face):
    assert detect_watermark(Image.new("L", (40, 70))).score == 0  # one colour
    assert detect_watermark(Image.new("RGBA", (3000, 33), "red")).score == 0
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    assert not detect_watermark(Image.fromarray(noise)).found


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_metadata_round_trip(face, format, options):
    face = face.copy()
    face.info[INFO_KEY] = PROVENANCE
    saved = through(face, format, **options)
    assert read_provenance(saved) == PROVENANCE
    xmp = saved.info["xmp"]
    assert b"trainedAlgorithmicMedia" in (xmp if isinstance(xmp, bytes) else xmp.encode())


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_no_metadata_without_provenance(face, format, options):
    assert read_provenance(through(face, format, **options)) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"source": "camera"}', '{"source": "AI-generated", "generator": 3}'],
)
def test_hostile_metadata(text):
    assert Provenance.from_json(text) is None


def test_checkpoint_names(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--faces" / "snapshots" / commit
    (snapshot / "transformer").mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert describe_checkpoint(str(snapshot)) == ("org/faces", commit)
    assert describe_checkpoint(str(snapshot / "transformer")) == ("org/faces", commit)
    assert describe_checkpoint("org/faces", commit) == ("org/faces", commit)
    assert describe_checkpoint("") == (None, None)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "config.json").write_text("{}")
    assert describe_checkpoint(str(tmp_path / "local")) == (
        "local",
        f"sha256:{checkpoint_sha256(tmp_path / 'local')}",
    )


def test_verify_command(face, tmp_path, capsys):
    marked = embed_watermark(face)
    marked.info[INFO_KEY] = PROVENANCE
    save_image(marked, tmp_path / "marked.png")
    marked.convert("RGB").save(tmp_path / "stripped.jpg", quality=90)
    face.save(tmp_path / "plain.png")
    assert main(["verify", str(tmp_path / "marked.png"), str(tmp_path / "stripped.jpg")]) == 0
    out = capsys.readouterr().out
    assert "seed 7" in out and out.count("generated by UniF²ace") == 2 and "metadata   none" in out
    assert main(["verify", "--json", str(tmp_path / "plain.png")]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["generated"] is False and report["provenance"] is None and not report["watermark"]["found"]
    assert main(["verify", str(tmp_path / "absent.png")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_generate_command_writes_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("face.png", "face.jpg", "face.webp"):
        assert main(["generate", "a man", "--steps", "2", "--seed", "5", "-o", name]) == 0
        with Image.open(name) as image:
            assert read_provenance(image).seed == 5
