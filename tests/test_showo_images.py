"""Pictures: preprocessing, codes and decoded pixels are those of the original (`image_io`, `magvitv2`, `tables`)."""

import numpy as np
import pytest
import torch
from PIL import Image

from unif2ace.modeling_unif2ace import UniF2aceImageProcessor
from unif2ace.modeling_unif2ace.image_tokenizer_unif2ace import bits_to_codes, codes_to_bits


@pytest.fixture(scope="module")
def recorded(showo_recordings):
    return showo_recordings.load("magvitv2")


@pytest.fixture(scope="module")
def tokenizer(showo):
    return showo.model.vq_model


@torch.no_grad()
def test_codes_equal_the_originals(tokenizer, recorded):
    hidden = tokenizer.encoder(recorded["pixel_values"])
    torch.testing.assert_close(hidden, recorded["encoder_z"], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.encode(recorded["pixel_values"]), recorded["codes"])
    signs = torch.where(hidden > 0, 1.0, -1.0)
    torch.testing.assert_close(signs, recorded["quantized"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoded_pictures_equal_the_originals(tokenizer, recorded, showo_recordings):
    height, width = recorded["encoder_z"].shape[-2:]
    wide = showo_recordings.about("magvitv2")["decode_only_shape"]
    for codes, pixels, shape in (
        (recorded["codes"], recorded["decoded"], (height, width)),
        (recorded["decode_only_codes"], recorded["decode_only_pixels"], tuple(wide)),
    ):
        unclamped = tokenizer.decoder(codes_to_bits(codes, tokenizer.config.num_bits, *shape))
        torch.testing.assert_close(unclamped, pixels, atol=1e-5, rtol=1e-5)
        clamped = tokenizer.decode(codes, shape=shape)
        torch.testing.assert_close(clamped, pixels.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_training_losses_of_the_tokenizer_equal_the_originals(tokenizer, recorded):
    output = tokenizer(recorded["pixel_values"])
    # Show-o weighs both by 0.1 and adds a second commitment term of the same value times 0.25
    torch.testing.assert_close(0.1 * 1.25 * output.commitment_loss, recorded["commit_loss"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(0.1 * output.entropy_loss, recorded["entropy_loss"], atol=1e-6, rtol=1e-5)


def test_bits_of_codes_equal_the_originals(tokenizer, showo_recordings):
    tables = showo_recordings.load("tables")
    codes, vectors = tables["lfq_index"], tables["lfq_vector"]
    bits = codes_to_bits(codes[None], tokenizer.config.num_bits, 1, len(codes))
    assert torch.equal(bits[0, :, 0].T, vectors)
    assert torch.equal(bits_to_codes(bits)[0], codes)


def test_preprocessing_equals_the_originals(showo_recordings):
    recorded = showo_recordings.load("image_io")
    resolution = showo_recordings.about("image_io")["resolution"]
    processor = UniF2aceImageProcessor.from_resolution(resolution)
    picture = Image.fromarray(recorded["raw_rgb"].numpy())
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, recorded["pixel_values"], atol=1e-6, rtol=0)
    plain = processor(picture, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(plain, recorded["pixel_values_unnormalized"], atol=1e-6, rtol=0)


def test_pictures_equal_the_originals_to_one_level(tokenizer, recorded, showo_recordings, showo_folder):
    """The original truncates to 8 bits where we round."""
    from unif2ace import UniF2aceProcessor

    expected = showo_recordings.load("image_io")["decoded_uint8"].numpy().astype(int)
    processor = UniF2aceProcessor.from_pretrained(showo_folder)
    pixels = recorded["decoded"].clamp(-1, 1).permute(0, 2, 3, 1)
    ours = processor.post_process_multimodal_output(pixels, generation_mode="image")
    difference = np.stack([np.asarray(picture).astype(int) for picture in ours]) - expected
    assert difference.min() >= 0 and difference.max() <= 1


@pytest.mark.parametrize("height", [32, 33, 34, 35, 36, 43, 47])
def test_the_centre_is_cut_out_as_torchvision_does(height):
    """Half pixels round to the even side: int(round((height - crop) / 2))."""
    pixels = np.tile(np.arange(height, dtype=np.uint8)[:, None, None], (1, 32, 3))
    processor = UniF2aceImageProcessor.from_resolution(32, do_resize=False, do_rescale=False, do_normalize=False)
    cut = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    top = int(round((height - 32) / 2.0))
    assert cut[0, :, 0].tolist() == list(range(top, top + 32))
