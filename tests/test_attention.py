"""Our attention and rotary embedding against transformers' Phi, bit for bit, in the implementations that run here."""

import threading

import pytest
import torch
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiAttention, PhiRotaryEmbedding

from unif2ace import UniF2aceTextConfig
from unif2ace.modeling_unif2ace.attention_unif2ace import UniF2aceAttention, UniF2aceRotaryEmbedding
from unif2ace.modeling_unif2ace.compat_unif2ace import CACHE, DynamicCache


SHAPE = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def pair(implementation: str, **changes) -> tuple[UniF2aceAttention, PhiAttention, UniF2aceTextConfig, PhiConfig]:
    """Both attentions with the same random weights."""
    shape = {**SHAPE, "qk_layernorm": True, **changes}
    ours = UniF2aceTextConfig(**shape, moe_layers=[], sequence_moe_layers=[], attn_implementation=implementation)
    phis = PhiConfig(**shape, partial_rotary_factor=0.5, attn_implementation=implementation)
    torch.manual_seed(0)
    theirs = PhiAttention(phis, 0)
    attention = UniF2aceAttention(ours, 0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    attention.load_state_dict(theirs.state_dict())  # also: the same names and shapes
    return attention.eval(), theirs.eval(), ours, phis


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_phis(implementation, masked, heads, dtype):
    attention, theirs, ours, phis = pair(implementation, num_key_value_heads=heads)
    attention, theirs = attention.to(dtype), theirs.to(dtype)
    states = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    positions = torch.stack([torch.arange(9), torch.arange(9) + 5])
    mask = None
    if masked:
        hidden = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.3
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    angles = UniF2aceRotaryEmbedding(ours)(states, positions)
    expected_angles = PhiRotaryEmbedding(phis)(states, position_ids=positions)
    for ours_part, expected_part in zip(angles, expected_angles, strict=True):
        assert torch.equal(ours_part, expected_part)
    cache, expected_cache = DynamicCache(), DynamicCache()
    for _ in range(2):  # the second time with keys and values of the first
        if masked and cache.get_seq_length():
            mask = torch.cat([mask, mask], dim=-1)
        got, weights = attention(states, angles, mask, cache)
        expected, expected_weights = theirs(
            states, position_embeddings=expected_angles, attention_mask=mask, **{CACHE: expected_cache}
        )
        assert torch.equal(got, expected)
    assert (weights is None) == (implementation == "sdpa")
    if weights is not None:
        assert torch.equal(weights, expected_weights)


def test_gradients_are_phis():
    attention, theirs, ours, _ = pair("sdpa")
    states = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    angles = UniF2aceRotaryEmbedding(ours)(states, torch.arange(9)[None])
    attention(states, angles)[0].square().sum().backward()
    theirs(states, position_embeddings=angles, attention_mask=None)[0].square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, weight in attention.named_parameters():
        assert torch.equal(weight.grad, expected[name].grad), name


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_rotary_embeddings_are_phis_and_leave_nothing_behind(scaling):
    *_, ours, phis = pair("sdpa", rope_parameters={"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **scaling})
    rotary, theirs = UniF2aceRotaryEmbedding(ours), PhiRotaryEmbedding(phis)
    states, short, long = torch.zeros(1, 1, 48), torch.arange(9)[None], torch.arange(100)[None]
    before = [part.clone() for part in rotary(states, short)]
    for positions in (short, long, short):
        expected = theirs(states, position_ids=positions)
        assert all(map(torch.equal, rotary(states, positions), expected))
    assert all(map(torch.equal, rotary(states, short), before))


def test_rotary_embeddings_of_many_threads_do_not_meet():
    *_, ours, _ = pair(
        "sdpa",
        rope_parameters={
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "rope_type": "dynamic",
            "factor": 4.0,
        },
    )
    rotary = UniF2aceRotaryEmbedding(ours)
    lengths = (9, 100, 50, 200)
    expected = {length: rotary(torch.zeros(1), torch.arange(length)[None])[0] for length in lengths}
    wrong = []

    def run(length: int):
        for _ in range(100):
            if not torch.equal(rotary(torch.zeros(1), torch.arange(length)[None])[0], expected[length]):
                wrong.append(length)

    threads = [threading.Thread(target=run, args=(length,)) for length in lengths]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
