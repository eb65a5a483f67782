"""Pictures from pictures: what stays, what changes, which regions, and bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.cli import main
from unif2ace.pipelines.editing_unif2ace import codes_under_mask
from unif2ace.pipelines.regions_unif2ace import (
    FACE_PARTS,
    mask_picture,
    outpaint_canvas,
    paint_region,
    region_box,
)
from unif2ace.training.data.language.attributes import ATTRIBUTES
from unif2ace.training.synthetic.painted.dataset import attributes_of, identity_of
from unif2ace.training.synthetic.painted.painter import paint


TEXTS = ["a man with a hat and a beard", "a young woman with round glasses"]
STEPS, SIDE = 4, 16


def picture(seed, size=(SIDE, SIDE)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def codes_of(function, *arguments, **kwargs):
    return function(*arguments, num_inference_steps=STEPS, output_type="latent", **kwargs).codes


# --- regions


def test_parts_are_boxes_inside_of_the_picture():
    for part, box in FACE_PARTS.items():
        assert region_box(part) == region_box(box) == box
    for wrong in ("tail", (0.5, 0, 0.2, 1), (0, 0, 2, 1), (0, 1), 3, None):
        with pytest.raises(ValueError, match="facial part"):
            region_box(wrong)


@pytest.mark.parametrize(
    ("part", "attribute"),
    [
        ("mouth", "lipstick"),
        ("eyes", "eye_color"),
        ("eyes", "eyewear"),
        ("eyebrows", "brow_thickness"),
        ("nose", "nose"),
        ("chin", "beard"),
        ("neck", "neckwear"),
    ],
)
def test_parts_hold_the_features_of_painted_faces(part, attribute):
    """The box of a part holds most of the pixels that change when its attribute does."""
    changed, box = np.zeros((64, 64)), np.asarray(paint_region(part, (64, 64))) > 0
    for index in range(8):
        attributes, identity = attributes_of(index, "test"), identity_of(index, "test")
        attributes |= {"pose": "frontal", "tilt": "upright", "mask": "no", "headwear": "none"}
        before = np.asarray(paint(attributes, identity), float)
        for value in ATTRIBUTES[attribute]:
            after = np.asarray(paint(attributes | {attribute: value}, identity), float)
            changed += np.abs(after - before).sum(-1) > 30
    assert changed.any() and changed[box].sum() > 0.8 * changed.sum()


def test_masks_of_every_kind():
    size = (6, 4)
    levels = np.zeros((4, 6), dtype=np.uint8)
    levels[1:3, 2:5] = 1
    expected = levels * 255
    for mask in (
        Image.fromarray(expected),
        expected,
        levels,
        levels.astype(bool),
        levels.astype(np.float32),
        torch.from_numpy(levels),
        torch.from_numpy(levels).bool()[None],
        Image.fromarray(expected).convert("RGB"),
        Image.fromarray(expected).convert("1"),
    ):
        np.testing.assert_array_equal(np.asarray(mask_picture(mask, size)), expected)
    box = np.asarray(mask_picture((0.5, 0, 1, 0.5), size))
    assert box[:2, 3:].all() and not box[2:].any() and not box[:, :3].any()
    for wrong, message in (
        (np.zeros((4, 5), np.uint8), "make them equal"),
        (np.full((4, 6), 2.0), "floats outside of 0 to 1"),
        (np.full((4, 6), 300), "values up to 300"),
        (np.zeros((2, 4, 6)), "expected \\(height, width\\)"),
        (np.full((4, 6), np.nan), "floats outside"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_picture(wrong, size)


def test_a_mask_takes_every_code_that_it_touches():
    pixels = torch.zeros(2, 8, 8)
    pixels[0, 3, 4] = 1  # one pixel, in row 1 and column 2 of the 4 x 4 grid
    pixels[1] = 1
    under = codes_under_mask(pixels, 4)
    assert under[0].nonzero().flatten().tolist() == [6] and under[1].all()


def test_outpainting_canvas():
    image = picture(0, (8, 8))
    canvas, mask = outpaint_canvas(image, (0.5, 0, 0.25, 0.75))
    assert canvas.size == mask.size == (14, 14)
    inside = np.asarray(mask) == 0
    assert inside.sum() == 64 and inside[:8, 4:12].all()
    np.testing.assert_array_equal(np.asarray(canvas)[:8, 4:12], np.asarray(image))
    np.testing.assert_array_equal(np.asarray(canvas)[13, 4:12], np.asarray(image)[7])  # edges go on
    for margins, message in (
        ((0, 0, 0, 0), "not all 0"),
        ((-1, 0, 0, 0), "at least 0"),
        ((1, 0), "four numbers"),
        ((0.5, 0, 0, 0), "draws squares"),
        (None, "four numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            outpaint_canvas(image, margins)


# --- editing


def test_codes_and_back(pipe):
    faces = [picture(1), picture(2)]
    codes = pipe.encode_images(faces)
    assert codes.shape == (2, 16) and torch.equal(codes[1:], pipe.encode_images(faces[1]))
    again = pipe.decode_latents(codes, "pt")
    expected = pipe.transformer.decode_image_tokens(codes).permute(0, 3, 1, 2) / 2 + 0.5
    torch.testing.assert_close(again, expected.clamp(0, 1))


def test_inpainting_changes_codes_under_the_mask_only(pipe):
    face = picture(1)
    before = pipe.encode_images(face)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:5, 8:] = True  # two rows, two columns of the 4 x 4 codes
    under = torch.zeros(4, 4, dtype=torch.bool)
    under[:2, 2:] = True
    changed = set()
    for seed in range(6):
        after = codes_of(pipe.inpaint, TEXTS[0], face, mask, generator=seeded(seed))
        assert torch.equal(after[:, ~under.flatten()], before[:, ~under.flatten()])
        changed |= set((after != before).nonzero()[:, 1].tolist())
    assert changed == set(under.flatten().nonzero().flatten().tolist())
    same = pipe.inpaint(TEXTS[0], face, Image.fromarray(mask), generator=seeded(5), num_inference_steps=STEPS)
    assert torch.equal(same.codes, after) and same.images[0].size == (SIDE, SIDE)


def test_empty_and_full_masks(pipe):
    face = picture(1)
    nothing = codes_of(pipe.inpaint, TEXTS[0], face, np.zeros((SIDE, SIDE), bool), generator=seeded(1))
    assert torch.equal(nothing, pipe.encode_images(face))
    everything = codes_of(pipe.inpaint, TEXTS[0], face, np.ones((SIDE, SIDE), bool), generator=seeded(1))
    assert torch.equal(everything, codes_of(pipe, TEXTS[0], generator=seeded(1)))


def test_an_edit_is_the_same_alone_and_in_a_batch(pipe):
    faces, masks = [picture(1), picture(2)], [(0, 0, 0.5, 0.5), "mouth"]
    both = codes_of(pipe.inpaint, TEXTS, faces, masks, generator=seeded(1, 2))
    edited = codes_of(pipe.edit, TEXTS, faces, generator=seeded(1, 2), num_draws=1)
    varied = codes_of(pipe.vary, TEXTS, faces, generator=seeded(1, 2))
    for row in range(2):
        alone = codes_of(pipe.inpaint, TEXTS[row], faces[row], masks[row], generator=seeded(row + 1))
        assert torch.equal(alone[0], both[row])
        alone = codes_of(pipe.edit, TEXTS[row], faces[row], generator=seeded(row + 1), num_draws=1)
        assert torch.equal(alone[0], edited[row])
        assert torch.equal(codes_of(pipe.vary, TEXTS[row], faces[row], generator=seeded(row + 1))[0], varied[row])


def test_numbers_of_prompts_and_pictures(pipe):
    mask = (0, 0, 0.5, 0.5)
    two_prompts = codes_of(pipe.inpaint, TEXTS, picture(1), mask, generator=seeded(1, 2))
    two_faces = codes_of(pipe.inpaint, TEXTS[0], [picture(1), picture(2)], mask, generator=seeded(1, 2))
    assert len(two_prompts) == len(two_faces) == 2 and torch.equal(two_prompts[0], two_faces[0])
    several = codes_of(pipe.inpaint, TEXTS, picture(1), mask, num_images_per_prompt=2, generator=seeded(1, 3, 2, 4))
    assert torch.equal(several[[0, 2]], two_prompts)
    with pytest.raises(ValueError, match="3 images and 2 prompts"):
        pipe.inpaint(TEXTS, [picture(0)] * 3, mask)
    with pytest.raises(ValueError, match="2 masks for 1 images"):
        pipe.inpaint(TEXTS, picture(0), ["mouth", "nose"])


def test_kept_pixels_are_the_originals(pipe):
    face, mask = picture(1), np.zeros((SIDE, SIDE), bool)
    mask[4:8, 4:8] = True
    arguments = {"generator": seeded(1), "num_inference_steps": STEPS, "watermark": False}
    kept = np.asarray(pipe.inpaint(TEXTS[0], face, mask, keep_pixels=True, **arguments).images[0])
    drawn = np.asarray(pipe.inpaint(TEXTS[0], face, mask, **(arguments | {"generator": seeded(1)})).images[0])
    np.testing.assert_array_equal(kept[~mask], np.asarray(face)[~mask])
    np.testing.assert_array_equal(kept[mask], drawn[mask])
    assert (drawn[~mask] != np.asarray(face)[~mask]).any()
    marked, _ = pipe.inpaint(TEXTS[0], face, mask, keep_pixels=True, num_inference_steps=2, return_dict=False)
    assert marked[0].info
    with pytest.raises(ValueError, match="output_type='np', expected 'pil'"):
        pipe.inpaint(TEXTS[0], face, mask, keep_pixels=True, output_type="np")


def test_outpainting_keeps_the_inside(pipe):
    face = picture(1, (8, 8))
    canvas, _ = outpaint_canvas(face, (0.5, 0, 0.5, 1))
    after = codes_of(pipe.outpaint, TEXTS[0], face, (0.5, 0, 0.5, 1), generator=seeded(1)).view(4, 4)
    before = pipe.encode_images(canvas).view(4, 4)
    assert torch.equal(after[:2, 1:3], before[:2, 1:3]) and not torch.equal(after, before)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_a_variation_draws_a_share_of_the_codes(pipe, strength):
    face, masked = picture(1), []

    def count(pipeline, step, timestep, tensors):
        masked.append(int((tensors["latents"] == -1).sum()))
        return tensors

    after = codes_of(pipe.vary, TEXTS[0], face, strength, generator=seeded(1), callback_on_step_end=count)
    differ = int((after != pipe.encode_images(face)).sum())
    assert differ <= 16 * strength and (after >= 0).all()
    assert masked == [int(16 * strength * ratio) for ratio in (0.9239, 0.7072, 0.3827, 0)] or strength in (0.0, 0.25)


def test_an_edit_changes_what_the_sentences_differ_in(pipe):
    face = picture(1)
    before = pipe.encode_images(face)
    arguments = {"generator": seeded(1), "num_draws": 1}
    after = codes_of(pipe.edit, TEXTS[1], face, TEXTS[0], strength=0.25, **arguments)
    assert 0 < int((after != before).sum()) <= 4
    # equal sentences differ nowhere
    scores = pipe.text_difference([TEXTS[0]], [TEXTS[0]], before, seeded(1))
    torch.testing.assert_close(scores, torch.zeros(1, 16), atol=1e-4, rtol=0)
    assert (pipe.text_difference([TEXTS[1]], [TEXTS[0]], before, seeded(1)).abs() > 1e-3).any()
    box = (0, 0, 0.5, 0.5)
    inside = codes_of(pipe.edit, TEXTS[1], face, TEXTS[0], strength=1.0, region=box, **arguments).view(4, 4)
    assert torch.equal(inside[2:], before.view(4, 4)[2:]) and torch.equal(inside[:2, 2:], before.view(4, 4)[:2, 2:])
    with pytest.raises(ValueError, match="strength is 2"):
        pipe.edit(TEXTS[0], face, strength=2)
    with pytest.raises(ValueError, match="3 source prompts for 1 prompts"):
        pipe.edit(TEXTS[0], face, source_prompt=["a"] * 3)
    with pytest.raises(ValueError, match="num_draws is 0"):
        pipe.edit(TEXTS[0], face, num_draws=0)


def test_latents_are_checked(pipe):
    for latents, message in (
        (torch.zeros(1, 15, dtype=torch.long), "expected whole numbers of shape \\(1, 16\\)"),
        (torch.zeros(1, 16), "torch.float32"),
        (torch.full((1, 16), 32), "codes from 32 to 32, expected codes from 0 to 31"),
        (torch.full((1, 16), -2), "codes from -2"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe("a man", latents=latents)


# --- the command


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "how",
    [
        ["--region", "mouth", "--keep-pixels"],
        ["--source", TEXTS[1], "--region", "0,0,0.5,0.5"],
        ["--outpaint", "0.25,0.5,0.25,0"],
        ["--vary", "0.5"],
        ["--mask", "mask.png"],
    ],
)
def test_edit_command(checkpoint, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    picture(1).save("face.png")
    paint_region("mouth", (SIDE, SIDE)).save("mask.png")
    arguments = ["edit", "face.png", TEXTS[0], "-o", "out/new.png", "--steps", "2", "--model", str(checkpoint)]
    assert main([*arguments, "--seed", "5", *how]) == 0
    assert capsys.readouterr().out == "out/new.png  seed 5\n"
    first = Image.open("out/new.png").convert("RGB").tobytes()
    assert main([*arguments, "--seed", "5", *how]) == 0
    assert Image.open("out/new.png").convert("RGB").tobytes() == first


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--region", "tail"], "no facial part 'tail'"),
        (["--outpaint", "a,b"], "not four numbers"),
        (["--keep-pixels"], "needs --region"),
        (["--source", "a", "--vary", "0.5"], "--source chooses by itself"),
        (["--vary", "2"], "strength is 2.0"),
        (["-o", "new.txt"], "must end in one of"),
        (["--mask", "no.png"], "does not exist"),
    ],
)
def test_edit_command_says_what_is_wrong(checkpoint, tmp_path, monkeypatch, capsys, how, message):
    monkeypatch.chdir(tmp_path)
    picture(1).save("face.png")
    assert main(["edit", "face.png", TEXTS[0], "--model", str(checkpoint), *how]) == 2
    assert message in capsys.readouterr().err
