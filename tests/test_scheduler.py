"""`UniF2aceScheduler`: the diffusers side of sampling."""

import json

import pytest
import torch

from unif2ace import UniF2aceScheduler
from unif2ace.modeling_unif2ace.sampling_unif2ace import MASK_SCHEDULES, MaskSchedule


ROWS, TOKENS, CODES = 3, 36, 20


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(scheduler, seeds, steps=6):
    scheduler.set_timesteps(steps)
    rows, counts = generators(*seeds), []
    sample = torch.full((len(seeds), TOKENS), -1)
    logits = torch.randn(1, TOKENS, CODES, generator=torch.Generator().manual_seed(0)).expand(len(seeds), -1, -1)
    for timestep in scheduler.timesteps:
        output = scheduler.step(logits, timestep, sample, generator=rows)
        known = sample != -1
        assert torch.equal(output.prev_sample[known], sample[known])
        assert (output.pred_original_sample >= 0).all()
        sample = output.prev_sample
        counts.append((sample == -1).sum(-1).tolist())
    return sample, counts


def test_counts_follow_the_schedule():
    sample, counts = run(UniF2aceScheduler(masking_schedule="linear"), [1, 2, 3])
    assert counts == [[left] * 3 for left in (30, 24, 18, 12, 6, 0)]
    assert ((sample >= 0) & (sample < CODES)).all()


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
def test_everything_is_known_at_the_end(sampling):
    for steps in (1, 4, 50):
        sample, counts = run(UniF2aceScheduler(sampling=sampling), [1, 2], steps)
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
    one = scheduler.step(
        logits, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(0)
    ).prev_sample
    again = scheduler.step(
        logits, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(0), return_dict=False
    )[0]
    assert torch.equal(one, again) and not torch.equal(one[0], one[1])
    scheduler.step(logits, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        scheduler.step(logits, scheduler.timesteps[0], sample, generator=generators(1, 2, 3))


# What diffusers' scheduler tests ask of every scheduler, in the terms of masked codes


SAMPLINGS = ["maskgit", "ancestral", "entropy_bounded"]
EVERY_SCHEDULE = [*MASK_SCHEDULES, "pow3", "pow0.5"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_saved_and_loaded_schedulers_take_the_same_steps(sampling, tmp_path):
    for schedule in EVERY_SCHEDULE:
        scheduler = UniF2aceScheduler(masking_schedule=schedule, sampling=sampling, early_exit_entropy=0.1)
        scheduler.save_pretrained(tmp_path)
        loaded = UniF2aceScheduler.from_pretrained(tmp_path)
        settings = {name: value for name, value in scheduler.config.items() if name[0] != "_"}
        assert settings.items() <= loaded.config.items()
        assert torch.equal(run(loaded, [1])[0], run(scheduler, [1])[0])


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("steps", [1, 2, 7, TOKENS, 3 * TOKENS])
def test_step_counts_are_exact(schedule, steps):
    scheduler = UniF2aceScheduler(masking_schedule=schedule)
    _, counts = run(scheduler, [1, 2], steps)
    assert len(scheduler.timesteps) == len(counts) == steps
    before = TOKENS
    for step, count in enumerate(counts, start=1):
        planned = MaskSchedule(schedule).num_masked(step / steps, TOKENS)
        before = min(planned, max(before - 1, 0))  # a step reveals at least one, and never hides any
        assert count == [before] * 2
    assert before == 0


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_every_mask_ratio_is_reachable(schedule):
    """With as many steps as it takes, every number of masked codes from N to 0 is seen by the model."""
    scheduler = UniF2aceScheduler(masking_schedule=schedule)
    _, counts = run(scheduler, [1], 12 * TOKENS)
    assert {count for (count,) in counts} | {TOKENS} >= set(range(TOKENS // 2 + 1)) | {TOKENS}
    codes = torch.zeros(1, TOKENS, dtype=torch.long)
    for count in range(TOKENS + 1):
        assert (scheduler.add_noise(codes, mask_ratio=count / TOKENS) == -1).sum() == count


def test_moments_of_the_masking_distribution():
    """Every place is masked equally often and pairs are as correlated as in draws without replacement, to 4 sigma."""
    rows, share = 4000, 0.25
    codes = torch.zeros(rows, TOKENS, dtype=torch.long)
    masked = UniF2aceScheduler().add_noise(codes, mask_ratio=share, generator=generators(*range(rows))) == -1
    count = round(share * TOKENS)
    assert (masked.sum(-1) == count).all()
    deviation = (share * (1 - share) / rows) ** 0.5
    assert ((masked.double().mean(0) - share).abs() < 4 * deviation).all()
    both = (masked[:, :-1] & masked[:, 1:]).double().mean()
    expected = count * (count - 1) / (TOKENS * (TOKENS - 1))
    assert abs(both - expected) < 4 * (expected / (rows * (TOKENS - 1))) ** 0.5 * 2


def test_moments_of_the_ancestral_counts():
    """Codes masked after a step are Binomial(N, λ): mean and variance over many rows, to 4 sigma."""
    rows, scheduler = 400, UniF2aceScheduler(masking_schedule="cosine", sampling="ancestral")
    scheduler.set_timesteps(4)
    sample, streams = torch.full((rows, TOKENS), -1), generators(*range(rows))
    for timestep in scheduler.timesteps[:3]:
        sample = scheduler.step(torch.zeros(rows, TOKENS, CODES), timestep, sample, generator=streams).prev_sample
        ratio = MaskSchedule("cosine").ratio(1.25 - timestep.item())  # after the step
        counts, variance = (sample == -1).sum(-1).double(), TOKENS * ratio * (1 - ratio)
        assert counts.mean().item() == pytest.approx(TOKENS * ratio, abs=4 * (variance / rows) ** 0.5)
        assert counts.var().item() == pytest.approx(variance, rel=4 * (2 / rows) ** 0.5)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("editing", [False, True])
def test_logits_at_the_masked_places_give_the_same_codes(sampling, editing):
    """A loop that asks for `masked_positions` only ends where a loop over all places does."""
    table = torch.randn(CODES + 1, TOKENS, CODES, generator=torch.Generator().manual_seed(1))
    ends = []
    for few in (False, True):
        scheduler = UniF2aceScheduler(sampling=sampling, entropy_bound=20.0)
        sample, streams = torch.full((3, TOKENS), -1), generators(1, 2, 3)
        if editing:
            sample[0, 8:], sample[1, :], sample[2, :20] = 4, 5, 6
        scheduler.set_timesteps(9, initially_masked=(sample == -1).sum(-1).tolist() if editing else None)
        for timestep in scheduler.timesteps:
            logits, places = table[sample].mean(1), None  # logits depend on the codes so far, as a model's do
            if few:
                places = scheduler.masked_positions(sample, timestep)
                assert places.shape == (3, scheduler.max_masked(timestep, TOKENS))
                logits = logits.gather(1, places[..., None].expand(-1, -1, CODES))
            sample = scheduler.step(logits, timestep, sample, streams, positions=places).prev_sample
        ends.append(sample)
    assert torch.equal(*ends) and (ends[0] >= 0).all()
    if editing:
        assert (ends[0][0, 8:] == 4).all() and (ends[0][1] == 5).all() and (ends[0][2, :20] == 6).all()


def test_the_schedule_is_spread_over_the_masked_codes():
    scheduler = UniF2aceScheduler(masking_schedule="linear")
    sample = torch.zeros(2, TOKENS, dtype=torch.long)
    sample[0, :8], sample[1, :4] = -1, -1
    scheduler.set_timesteps(4, initially_masked=[8, 4])
    counts, streams = [], generators(1, 2)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(torch.zeros(2, TOKENS, CODES), timestep, sample, streams).prev_sample
        counts.append((sample == -1).sum(-1).tolist())
    assert counts == [[6, 3], [4, 2], [2, 1], [0, 0]]


def test_entropy_bounded_steps_follow_the_entropy():
    """Certain codes are revealed at once, uniform ones a few at a time; the last step reveals what is left."""
    scheduler = UniF2aceScheduler(sampling="entropy_bounded", entropy_bound=1.0)
    assert scheduler.may_finish_early and not UniF2aceScheduler().may_finish_early
    scheduler.set_timesteps(5)
    certain = torch.zeros(2, TOKENS, CODES)
    certain[0, :, 3] = 100.0
    sample, left = torch.full((2, TOKENS), -1), []
    for timestep in scheduler.timesteps:
        sample = scheduler.step(certain, timestep, sample, generators(1, 2)).prev_sample
        left.append((sample == -1).sum(-1).tolist())
    assert left == [[0, 35], [0, 34], [0, 33], [0, 32], [0, 0]]


def test_early_exit_finishes_sure_rows_only():
    scheduler = UniF2aceScheduler(early_exit_entropy=1.0)
    scheduler.set_timesteps(6)
    logits = torch.zeros(2, TOKENS, CODES)
    logits[0, :, 3] = 20.0
    output = scheduler.step(logits, scheduler.timesteps[0], torch.full((2, TOKENS), -1), generators(1, 2))
    assert (output.prev_sample == -1).sum(-1).tolist() == [0, MaskSchedule("cosine").num_masked(1 / 6, TOKENS)]
    assert scheduler.may_finish_early


def test_config_round_trip(tmp_path):
    scheduler = UniF2aceScheduler(
        masking_schedule="pow", sampling="ancestral", temperature=0.5, confidence_temperature=3.0
    )
    scheduler.save_pretrained(tmp_path)
    loaded = UniF2aceScheduler.from_pretrained(tmp_path)
    for name in ("masking_schedule", "sampling", "temperature", "confidence_temperature"):
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
    per_row = scheduler.add_noise(codes, torch.tensor([1.0, 0.75, 0.25]), generators(1, 2, 3))
    assert (per_row == -1).sum(-1).tolist() == [36, 27, 9]
    assert torch.equal(per_row[per_row != -1], codes[per_row != -1])
    share = scheduler.add_noise(codes, mask_ratio=0.25, generator=torch.Generator().manual_seed(0))
    assert (share == -1).sum(-1).tolist() == [9] * ROWS
    for arguments in ({}, {"timesteps": 1, "mask_ratio": 0.5}, {"mask_ratio": 1.5}, {"timesteps": 4.0}):
        with pytest.raises(ValueError):
            scheduler.add_noise(codes, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masking_schedule": "square"}, "mask schedule 'square' is unknown, expected one of cosine"),
        ({"sampling": "ddim"}, "sampling is 'ddim', expected one of maskgit, ancestral, entropy_bounded"),
        ({"entropy_bound": -1.0}, "entropy_bound is -1.0"),
        ({"early_exit_entropy": float("inf")}, "early_exit_entropy is inf"),
        ({"confidence_schedule": "cosine"}, "confidence_schedule is 'cosine'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"confidence_temperature": float("nan")}, "confidence_temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0 and up to 1"),
    ],
)
def test_wrong_configuration(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniF2aceScheduler(**arguments)


def test_wrong_steps():
    scheduler = UniF2aceScheduler()
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        scheduler.step(torch.zeros(1, 2, 3), 1.0, torch.full((1, 2), -1))
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(2)
    for timestep, message in (
        (0.7, "timestep 0.7 is not one of the 2 `timesteps`"),
        (0.0, "timestep 0 is not one"),
        (1, "step's number"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.step(torch.zeros(1, 2, 3), timestep, torch.full((1, 2), -1))


# The conventions of diffusers for discrete diffusion


@pytest.mark.parametrize("steps", [1, 3, 16, 1000])
def test_timesteps_fall_from_one_towards_zero(steps):
    scheduler = UniF2aceScheduler()
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    assert times.dtype == torch.float32 and len(times) == steps and times[0] == 1 and times[-1] > 0
    assert (times.diff() < 0).all()
    assert [scheduler.max_masked(time, steps) for time in times][0] == steps  # each finds its step
    assert [scheduler.max_masked(time, 10**6) for time in times] == sorted(
        (scheduler.max_masked(time, 10**6) for time in times), reverse=True
    )


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "showo"])
def test_codes_are_drawn_from_the_shaped_logits(sampling):
    logits = torch.randn(ROWS, TOKENS, CODES, generator=torch.Generator().manual_seed(0))
    sample = torch.full((ROWS, TOKENS), -1)
    for shape, most in (({"top_k": 3}, 3), ({"top_p": 0.5}, CODES - 1), ({"top_k": 4, "top_p": 0.4}, 4)):
        scheduler = UniF2aceScheduler(sampling=sampling, temperature=0.5, **shape)
        scheduler.set_timesteps(1)
        output = scheduler.step(logits, 1.0, sample, torch.Generator().manual_seed(1))
        allowed = output.pred_logits.isfinite()
        assert 1 <= allowed.sum(-1).min() and allowed.sum(-1).max() <= most
        assert allowed.gather(-1, output.prev_sample[..., None]).all()
        torch.testing.assert_close(output.pred_logits[allowed], logits[allowed] / 0.5)
        if "top_p" in shape and "top_k" not in shape:  # the fewest codes that make up the share
            mass = (logits / 0.5).softmax(-1).masked_fill(~allowed, 0)
            assert (mass.sum(-1) >= 0.5).all()
            smallest = mass.masked_fill(~allowed, torch.inf).amin(-1)
            assert (mass.sum(-1) - smallest < 0.5).all()


def test_configurations_of_before_are_taken(tmp_path, caplog):
    """They have `mask_token_id`, which was -1 and is always -1 now."""
    UniF2aceScheduler(temperature=0.7).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    old = json.loads(file.read_text()) | {"mask_token_id": -1}
    for name in ("top_k", "top_p"):
        del old[name]
    file.write_text(json.dumps(old))
    with caplog.at_level("WARNING", "diffusers"):
        loaded = UniF2aceScheduler.from_pretrained(tmp_path)
        changed = UniF2aceScheduler.from_config(old, top_k=5)
    assert not caplog.records and "mask_token_id" not in loaded.config
    assert loaded.config.temperature == changed.config.temperature == 0.7 and changed.config.top_k == 5
