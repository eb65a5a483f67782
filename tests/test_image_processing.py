"""Any picture comes in upright and in RGB, or is refused with one sentence."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.modeling_unif2ace import (
    UniF2aceImageError,
    UniF2aceImageProcessor,
    load_image,
)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(left, right, mode: str = "RGB", size=(40, 20)) -> Image.Image:
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


RED_BLUE = two_halves("red", "blue")


def test_paths_bytes_pictures_and_base64_are_the_same(tmp_path):
    path = tmp_path / "face.png"
    RED_BLUE.save(path)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    for source in (path, str(path), content, bytearray(content), RED_BLUE, text, f"data:image/png;base64,{text}"):
        picture = load_image(source)
        assert picture.mode == "RGB"
        assert np.array_equal(picture, RED_BLUE)


@pytest.mark.parametrize("mode", "1 L P RGB RGBA CMYK YCbCr HSV LA PA La RGBa RGBX".split())
def test_every_mode_becomes_rgb(mode):
    grey = Image.linear_gradient("L").resize((32, 32))
    through = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode)
    picture = grey.convert("RGB").convert(through).convert(mode) if through else grey.convert("RGB").convert(mode)
    assert picture.mode == mode
    result = load_image(picture)
    assert result.mode == "RGB"
    if mode not in ("1", "P", "PA"):  # these have few colours
        assert np.abs(np.asarray(result, dtype=int) - np.asarray(grey, dtype=int)[..., None]).max() < 20


def test_cmyk_jpeg_keeps_its_colours():
    picture = load_image(encoded(two_halves("red", "white").convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(picture)[10, 5].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(np.asarray(picture)[10, 35].astype(int) - 255).max() < 12


def test_16_bits_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 256, dtype=np.uint16).repeat(16).reshape(256, 16)
    content = encoded(Image.fromarray(levels), "PNG")
    assert Image.open(io.BytesIO(content)).mode == "I;16"
    grey = np.asarray(load_image(content))[:, 0, 0]
    assert np.array_equal(grey, np.arange(256))


def test_wide_integers_and_floats_are_scaled():
    ramp = np.linspace(0, 1, 256)[:, None].repeat(4, axis=1)
    for levels in (
        (ramp * 255).round().astype(np.int32),
        (ramp * 65535).astype(np.int32),
        ramp.astype(np.float32),
        (ramp * 255).astype(np.float32),
    ):
        assert np.abs(np.asarray(load_image(Image.fromarray(levels)))[:, 0, 0].astype(int) - np.arange(256)).max() <= 1
    with pytest.raises(UniF2aceImageError, match="not finite"):
        load_image(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))


def test_transparent_parts_become_white():
    picture = two_halves((255, 0, 0, 255), (0, 0, 255, 0), mode="RGBA")
    for content in (encoded(picture, "PNG"), encoded(picture, "WEBP", lossless=True), encoded(picture, "GIF")):
        pixels = np.asarray(load_image(content))
        assert pixels[10, 5].tolist() == [255, 0, 0]
        assert pixels[10, 35].tolist() == [255, 255, 255]


def test_palette_transparency_becomes_white():
    picture = two_halves(0, 1, mode="P")
    picture.putpalette([0, 255, 0, 0, 0, 0])
    pixels = np.asarray(load_image(encoded(picture, "PNG", transparency=1)))
    assert pixels[10, 5].tolist() == [0, 255, 0]
    assert pixels[10, 35].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied_once_and_the_source_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    content = encoded(RED_BLUE, "JPEG", exif=exif, quality=95)
    picture = load_image(content)
    assert picture.size == (20, 40)
    assert np.asarray(picture)[5, 10, 0] > 200 and np.asarray(picture)[35, 10, 2] > 200
    assert load_image(picture).size == (20, 40)
    opened = Image.open(io.BytesIO(content))
    assert load_image(opened).size == (20, 40) and opened.size == (40, 20)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert np.abs(np.asarray(load_image(content))[8, 8].astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind, tmp_path):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    content = encoded(noise, kind)
    path = tmp_path / "face"
    for share in (0.3, 0.6):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UniF2aceImageError, match="face"):
            load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_ends_too_early_is_seen_without_decoding_and_no_other(kind):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    exif = b"Exif\0\0" + encoded(noise.resize((8, 8)), "JPEG")  # a thumbnail has an end of its own
    content = encoded(noise, kind, **({"exif": exif} if kind == "JPEG" else {}))
    for left in (len(content) // 2, len(content) - 100):
        with pytest.raises(UniF2aceImageError, match="the file ends too early"):
            load_image(content[:left])
    for whole in (content, content + b"a film of the phone" * 100):
        assert load_image(whole).size == (64, 64)
    for missing in range(1, 40):  # what Pillow reads is read
        try:
            Image.open(io.BytesIO(content[:-missing])).load()
        except OSError:
            continue
        assert load_image(content[:-missing]).size == (64, 64)


def test_pixel_count_is_checked_before_decoding():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def header_only(width: int, height: int) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))

    with pytest.raises(UniF2aceImageError, match="8001x8000 = 64,008,000 pixels, the limit is 64,000,000"):
        load_image(header_only(8001, 8000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UniF2aceImageError, match="more pixels than Pillow opens"):
        load_image(header_only(100_000, 100_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(UniF2aceImageError, match="the limit is 100"):
        load_image(RED_BLUE, max_pixels=100)
    with pytest.raises(UniF2aceImageError, match="ratio"):
        load_image(Image.new("RGB", (101, 1)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no/such/face.png", "does not exist"),
        (".", "is a folder"),
        ("https://example.org/face.png", "internet address"),
        ("data:image/png;base64,???", "base64"),
        (b"", "not a picture"),
        (b"not a picture at all", "not a picture"),
        (7, "type int"),
        (None, "type NoneType"),
        ("zero\0byte", "does not exist"),
    ],
)
def test_bad_sources_are_refused_with_one_sentence(source, reason):
    with pytest.raises(UniF2aceImageError, match=reason) as caught:
        load_image(source)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_pixels_are_resized_cropped_and_normalised():
    processor = UniF2aceImageProcessor.from_resolution(16)
    pixels = processor(two_halves("black", "white", size=(64, 32)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    assert pixels[0, :, :, 0].max() == -1 and pixels[0, :, :, -1].min() == 1
    tall = processor([Image.new("RGB", (20, 90), "red")] * 2, return_tensors="pt").pixel_values
    assert tall.shape == (2, 3, 16, 16)
    assert torch.equal(tall[0, :, 3, 3], torch.tensor([1.0, -1.0, -1.0]))


def test_resizing_is_pillows_bicubic():
    noise = Image.effect_noise((100, 80), 60).convert("RGB")
    expected = np.asarray(noise.resize((20, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16)), dtype=np.float32)
    pixels = UniF2aceImageProcessor.from_resolution(16)(noise, return_tensors="np").pixel_values[0]
    assert np.abs(pixels.transpose(1, 2, 0) - (expected / 127.5 - 1)).max() < 1e-5


def test_processor_takes_odd_pictures_paths_and_arrays(tmp_path):
    path = tmp_path / "face.png"
    RED_BLUE.convert("RGBA").save(path)
    processor = UniF2aceImageProcessor.from_resolution(16)
    same = [str(path), path, RED_BLUE, RED_BLUE.convert("RGBA"), path.read_bytes()]
    pixels = processor(same, return_tensors="pt").pixel_values
    assert all(torch.equal(pixels[0], other) for other in pixels)
    array = processor(np.asarray(RED_BLUE), return_tensors="pt").pixel_values
    assert torch.equal(array[0], pixels[0])
    with pytest.raises(UniF2aceImageError, match="does not exist"):
        processor("no/such/face.png")
    with pytest.raises(UniF2aceImageError, match="the limit is 100"):
        UniF2aceImageProcessor.from_resolution(16, max_pixels=100)(RED_BLUE)


def test_image_processor_round_trip(tmp_path):
    processor = UniF2aceImageProcessor.from_resolution(16, max_pixels=12345)
    processor.save_pretrained(tmp_path)
    loaded = UniF2aceImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.max_pixels == 12345 and loaded.crop_size["height"] == 16
    assert torch.equal(
        loaded(RED_BLUE, return_tensors="pt").pixel_values, processor(RED_BLUE, return_tensors="pt").pixel_values
    )
