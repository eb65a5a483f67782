"""The image tokenizer: what must hold for any shape. (Parity with Show-o's: `test_showo_images.py`.)"""

import pytest
import torch

from unif2ace.modeling_unif2ace.image_tokenizer_unif2ace import (
    UniF2aceVQModel,
    bits_to_codes,
    codes_to_bits,
    lookup_free_losses,
)
from unif2ace.modeling_unif2ace.presets_unif2ace import get_preset


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UniF2aceVQModel(get_preset("tiny").vq_config).eval()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_every_code_survives_its_bits():
    codes = torch.arange(1024).reshape(4, 256)
    bits = codes_to_bits(codes, 10, 16, 16)
    assert bits.shape == (4, 10, 16, 16) and set(bits.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(bits_to_codes(bits), codes)
    assert bits[0, -1].flatten()[:4].tolist() == [-1, 1, -1, 1]  # the last channel is the lowest bit, row by row


def test_shapes_and_ranges(model, pixels):
    codes = model.encode(pixels)
    assert codes.shape == (3, 16) and codes.dtype == torch.long
    assert 0 <= codes.min() and codes.max() < model.config.codebook_size
    image = model.decode(codes)
    assert image.shape == pixels.shape and image.abs().max() <= 1


def test_training_forward_agrees_with_encode_and_decode(model, pixels):
    output = model(pixels)
    assert torch.equal(output.codes, model.encode(pixels))
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), model.decode(output.codes), atol=1e-5, rtol=1e-5)


def test_gradients_pass_the_quantiser(model, pixels):
    output = model(pixels)
    (output.reconstruction - pixels).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_entropy_rewards_certain_and_varied_bits():
    varied = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)
    constant, unsure = torch.full_like(varied, 3.0), torch.zeros_like(varied)
    entropy = [float(lookup_free_losses(hidden, hidden.sign())[1]) for hidden in (varied, constant, unsure)]
    assert entropy[0] == pytest.approx(-0.6931, abs=1e-3)
    assert entropy[1] == pytest.approx(0, abs=1e-3) and entropy[2] == pytest.approx(0, abs=1e-6)


def test_saved_and_loaded_is_the_same(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = UniF2aceVQModel.from_pretrained(tmp_path).eval()
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    codes = model.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))


def test_bfloat16_model_gives_codes_and_pixels(model, pixels):
    half = model.to(torch.bfloat16)
    assert half.encoder(pixels.bfloat16()).dtype == torch.float32
    assert half.decode(half.encode(pixels)).shape == pixels.shape


def test_errors_say_what_is_wrong(model):
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode(torch.zeros(1, 3, 17, 16))
    with pytest.raises(ValueError, match="give `shape`"):
        model.decode(torch.zeros(1, 20, dtype=torch.long))
    with pytest.raises(ValueError, match="masked places must be filled"):
        model.decode(torch.full((1, 16), -1))
