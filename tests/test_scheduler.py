"""`UniF2aceScheduler`: the diffusers side of sampling."""

import pytest
import torch

from unif2ace import UniF2aceScheduler


ROWS, TOKENS, CODES = 3, 36, 20


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(scheduler, seeds, steps=6):
    scheduler.set_timesteps(steps)
    rows, counts = generators(*seeds), []
    sample = torch.full((len(seeds), TOKENS), scheduler.config.mask_token_id)
    logits = torch.randn(1, TOKENS, CODES, generator=torch.Generator().manual_seed(0)).expand(len(seeds), -1, -1)
    for timestep in scheduler.timesteps:
        output = scheduler.step(logits, timestep, sample, generator=rows)
        known = sample != scheduler.config.mask_token_id
        assert torch.equal(output.prev_sample[known], sample[known])
        assert (output.pred_original_sample >= 0).all()
        sample = output.prev_sample
        counts.append((sample == scheduler.config.mask_token_id).sum(-1).tolist())
    return sample, counts


def test_counts_follow_the_schedule():
    sample, counts = run(UniF2aceScheduler(masking_schedule="linear"), [1, 2, 3])
    assert counts == [[left] * 3 for left in (30, 24, 18, 12, 6, 0)]
    assert ((sample >= 0) & (sample < CODES)).all()


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
@pytest.mark.parametrize("mask_token_id", [-1, -100])
def test_everything_is_known_at_the_end(sampling, mask_token_id):
    for steps in (1, 4, 50):
        sample, counts = run(UniF2aceScheduler(mask_token_id, sampling=sampling), [1, 2], steps)
        assert counts[-1] == [0, 0] and len(counts) == steps
        assert ((sample >= 0) & (sample < CODES)).all()


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
def test_rows_do_not_depend_on_their_batch(sampling):
    scheduler = UniF2aceScheduler(sampling=sampling)
    batch, _ = run(scheduler, [7, 8, 9])
    assert torch.equal(run(scheduler, [8])[0][0], batch[1])


def test_single_generator_and_none():
    scheduler = UniF2aceScheduler()
    scheduler.set_timesteps(4)
    sample, logits = torch.full((2, TOKENS), -1), torch.zeros(2, TOKENS, CODES)
    one = scheduler.step(logits, 3, sample, generator=torch.Generator().manual_seed(0)).prev_sample
    again = scheduler.step(logits, 3, sample, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    assert torch.equal(one, again) and not torch.equal(one[0], one[1])
    scheduler.step(logits, 3, sample)
    with pytest.raises(ValueError, match="3 generators for 2 rows"):
        scheduler.step(logits, 3, sample, generator=generators(1, 2, 3))


def test_config_round_trip(tmp_path):
    scheduler = UniF2aceScheduler(
        masking_schedule="pow", sampling="ancestral", temperature=0.5, confidence_temperature=3.0
    )
    scheduler.save_pretrained(tmp_path)
    loaded = UniF2aceScheduler.from_pretrained(tmp_path)
    for name in ("masking_schedule", "sampling", "temperature", "confidence_temperature", "mask_token_id"):
        assert loaded.config[name] == scheduler.config[name]
    assert torch.equal(run(loaded, [1])[0], run(scheduler, [1])[0])
    changed = UniF2aceScheduler.from_config(loaded.config, masking_schedule="cosine", confidence_schedule="showo")
    assert changed.config.masking_schedule == "cosine" and changed.config.temperature == 0.5


def test_add_noise():
    scheduler = UniF2aceScheduler(masking_schedule="linear")
    scheduler.set_timesteps(4)
    codes = torch.randint(CODES, (ROWS, TOKENS))
    masked = [scheduler.add_noise(codes, t, generators(1, 2, 3)) for t in scheduler.timesteps]
    assert [(noisy == -1).sum(-1).tolist() for noisy in masked] == [[n] * ROWS for n in (36, 27, 18, 9)]
    per_row = scheduler.add_noise(codes, torch.tensor([3, 2, 0]), generators(1, 2, 3))
    assert (per_row == -1).sum(-1).tolist() == [36, 27, 9]
    assert torch.equal(per_row[per_row != -1], codes[per_row != -1])
    share = scheduler.add_noise(codes, mask_ratio=0.25, generator=torch.Generator().manual_seed(0))
    assert (share == -1).sum(-1).tolist() == [9] * ROWS
    for arguments in ({}, {"timesteps": 1, "mask_ratio": 0.5}, {"mask_ratio": 1.5}, {"timesteps": 4}):
        with pytest.raises(ValueError):
            scheduler.add_noise(codes, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masking_schedule": "square"}, "masking_schedule is 'square', expected one of cosine"),
        ({"sampling": "ddim"}, "sampling is 'ddim', expected one of maskgit, ancestral"),
        ({"confidence_schedule": "cosine"}, "confidence_schedule is 'cosine'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"confidence_temperature": float("nan")}, "confidence_temperature is nan"),
        ({"mask_token_id": 5}, "mask_token_id is 5, a valid code"),
    ],
)
def test_wrong_configuration(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniF2aceScheduler(**arguments)


def test_wrong_steps():
    scheduler = UniF2aceScheduler()
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        scheduler.step(torch.zeros(1, 2, 3), 0, torch.full((1, 2), -1))
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="timestep 2 is not one of the 2 steps"):
        scheduler.step(torch.zeros(1, 2, 3), 2, torch.full((1, 2), -1))
