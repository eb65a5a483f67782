"""Mask schedules, MaskGIT and ancestral steps: exact counts, known codes, independence of rows, moments."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from unif2ace.modeling_unif2ace.sampling_unif2ace import (
    MASK_SCHEDULES,
    MASKED_CODE,
    DecodingStep,
    ImageSampling,
    MaskSchedule,
    ancestral_step,
    code_entropies,
    confidence_temperatures,
    draw_codes,
    entropy_bounded_step,
    mask_codes,
    masked_positions,
    maskgit_step,
    row_generators,
)


TOKENS, CODES = 64, 16


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_logits(rows, seed=0):
    return torch.randn(rows, TOKENS, CODES, generator=torch.Generator().manual_seed(seed))


def all_masked(rows):
    return torch.full((rows, TOKENS), MASKED_CODE)


NUMBERS, FALL = ImageSampling(), DecodingStep(ratio=0.7, next_ratio=0.2)


def keep(num_masked, noise=1.0):
    """A step after which so many codes of each row are masked."""
    return DecodingStep(num_masked=num_masked, confidence_temperature=noise)


def sample(seeds, steps=8, sampling="maskgit", rows=None):
    """A whole loop; logits depend on the row's codes, as a model's do."""
    table = torch.randn(CODES + 1, TOKENS, CODES, generator=torch.Generator().manual_seed(1))
    codes, rows = all_masked(len(seeds)), generators(*seeds)
    noise = confidence_temperatures("linear", 2.0, steps)
    for step in range(steps):
        logits = table[codes].mean(1)  # (rows, TOKENS, CODES): mean over positions of their code's table
        if sampling == "maskgit":
            left = MaskSchedule("cosine").num_masked((step + 1) / steps, TOKENS)
            codes, _ = maskgit_step(logits, codes, keep(left, noise[step]), NUMBERS, rows)
        else:
            before, after = (MaskSchedule("cosine").ratio(k / steps) for k in (step, step + 1))
            codes, _ = ancestral_step(logits, codes, DecodingStep(ratio=before, next_ratio=after), NUMBERS, rows)
    return codes


@pytest.mark.parametrize("schedule", [*MASK_SCHEDULES, "pow3", "pow0.5"])
def test_schedules_fall_from_one_to_zero(schedule):
    ratios = [MaskSchedule(schedule).ratio(k / 20) for k in range(21)]
    assert ratios[0] == 1 and ratios[-1] == 0
    assert all(before >= after for before, after in zip(ratios, ratios[1:], strict=False))
    assert len(set(ratios)) > 10 and all(0 <= ratio <= 1 for ratio in ratios)
    assert MaskSchedule(schedule).num_masked(0.0, 100) == 100 and MaskSchedule(schedule).num_masked(1.0, 100) == 0
    assert MaskSchedule(schedule).num_masked(0.999, 4) == 1  # never finished early


def test_schedule_values():
    assert MaskSchedule("cosine").ratio(0.25) == pytest.approx(math.cos(math.pi / 8))
    assert MaskSchedule("linear").ratio(0.25) == 0.75
    assert MaskSchedule("pow").ratio(0.5) == 0.75
    assert MaskSchedule("pow3").ratio(0.5) == 0.875 and MaskSchedule("pow0.5").ratio(0.25) == 0.5
    assert MaskSchedule("sigmoid").ratio(0.5) == pytest.approx(0.5)
    assert MaskSchedule("arccos").ratio(0.5) == pytest.approx(2 / 3)
    # MaskGIT's code: -log2(u) / log2(N), and 1 - N^(u - 1) up to the stretch
    assert MaskSchedule("log").ratio(0.25, 256) == pytest.approx(2 / 8)
    assert MaskSchedule("exp").ratio(0.5, 256) == pytest.approx((1 - 1 / 16) / (1 - 1 / 256))
    # four cosine steps of 256 codes (λ = 0.9239, 0.7071, 0.3827)
    assert [MaskSchedule("cosine").num_masked(k / 4, 256) for k in (1, 2, 3, 4)] == [236, 181, 97, 0]
    # 0.7 x 10 is 7, whatever floating point says
    assert MaskSchedule("linear").num_masked(0.3, 10) == 7


def test_unknown_schedules_are_named():
    with pytest.raises(ValueError, match="mask schedule 'square' is unknown, expected one of cosine.*pow3"):
        MaskSchedule("square").ratio(0.5)
    with pytest.raises(ValueError, match="'pow0'"):
        MaskSchedule("pow0").ratio(0.5)
    with pytest.raises(ValueError, match="'none' is unknown.*linear"):
        confidence_temperatures("none", 1.0, 4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        MaskSchedule("cosine").ratio(1.5)


def test_confidence_temperatures():
    assert confidence_temperatures("linear", 4.0, 4) == [3.0, 2.0, 1.0, 0.0]
    # Show-o's product: 1 · 17/18 · 16/18 · ... is 0.26 after 6 of 18 steps
    showo = confidence_temperatures("showo", 1.0, 18)
    assert showo[5] == pytest.approx(0.26, abs=0.02) and showo[-1] == 0


@pytest.mark.parametrize("left", [1, 7, 40, 63])
def test_maskgit_keeps_exactly_so_many_masked(left):
    codes, predicted = maskgit_step(random_logits(3), all_masked(3), keep(left, 5.0), NUMBERS, generators(1, 2, 3))
    assert (codes == MASKED_CODE).sum(-1).tolist() == [left] * 3
    assert ((predicted >= 0) & (predicted < CODES)).all()
    known = codes != MASKED_CODE
    assert torch.equal(codes[known], predicted[known])


def test_maskgit_reveals_at_least_one_code_per_row():
    codes = all_masked(2)
    codes[1, 2:] = 3  # two masked
    codes, _ = maskgit_step(random_logits(2), codes, keep(TOKENS), NUMBERS, generators(1, 2))
    assert (codes == MASKED_CODE).sum(-1).tolist() == [TOKENS - 1, 1]


def test_maskgit_without_noise_keeps_the_most_confident():
    logits = torch.zeros(1, TOKENS, CODES)
    logits[0, :, 0] = torch.arange(TOKENS).float()  # the later, the surer
    codes, _ = maskgit_step(logits, all_masked(1), keep(40, 0.0), ImageSampling(temperature=0), generators(0))
    assert (codes[0, :40] == MASKED_CODE).all() and (codes[0, 40:] == 0).all()


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
def test_known_codes_never_change(sampling):
    codes = all_masked(2)
    codes[:, ::3] = torch.randint(CODES, (2, len(range(0, TOKENS, 3))))
    known, rows = codes != MASKED_CODE, generators(1, 2)
    if sampling == "maskgit":
        after, predicted = maskgit_step(random_logits(2), codes, keep(5), NUMBERS, rows)
    else:
        after, predicted = ancestral_step(random_logits(2), codes, FALL, NUMBERS, rows)
    assert torch.equal(after[known], codes[known]) and torch.equal(predicted[known], codes[known])


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
@pytest.mark.parametrize("steps", [1, 5, 100])
def test_all_known_at_the_end(sampling, steps):
    codes = sample([1, 2], steps, sampling)
    assert ((codes >= 0) & (codes < CODES)).all()


@pytest.mark.parametrize("sampling", ["maskgit", "ancestral"])
def test_rows_do_not_depend_on_their_batch(sampling):
    batch = sample([4, 5, 6], sampling=sampling)
    for row, seed in enumerate((4, 5, 6)):
        assert torch.equal(batch[row], sample([seed], sampling=sampling)[0])
    assert torch.equal(sample([5, 4], sampling=sampling), batch[[1, 0]])


def test_row_generators():
    def first(generator, rows):
        return [torch.rand(3, generator=row).tolist() for row in row_generators(generator, rows)]

    one = torch.Generator().manual_seed(1)
    alone, batch = first(torch.Generator().manual_seed(1), 1), first(one, 3)
    assert alone == batch[:1] == first(generators(1), 1)  # one, the first of three, and a list of one
    assert batch[0] != batch[1] != batch[2]
    assert first(one, 3) != batch  # the caller's generator has moved on
    assert first(generators(7, 8), 2) == first(generators(7), 1) + first(generators(8), 1)
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        row_generators(generators(1, 2), 3)
    torch.manual_seed(3)
    unseeded = first(None, 2)
    torch.manual_seed(3)
    assert first(None, 2) == unseeded


def test_reveal_probability():
    """Reveals are independent with probability (λ_t - λ_s) / λ_t: mean and variance of the count, to 4 sigma."""
    rows, probability = 200, (0.8 - 0.3) / 0.8
    logits, fall = torch.zeros(rows, TOKENS, CODES), DecodingStep(ratio=0.8, next_ratio=0.3)
    codes, _ = ancestral_step(logits, all_masked(rows), fall, NUMBERS, generators(*range(rows)))
    counts = (codes != MASKED_CODE).sum(-1).double()
    variance = TOKENS * probability * (1 - probability)
    assert counts.mean().item() == pytest.approx(TOKENS * probability, abs=4 * math.sqrt(variance / rows))
    assert counts.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / rows))


def test_draws_follow_the_model():
    """Frequencies of 200 x 64 draws match the softmax, to 4 sigma; impossible codes are never drawn."""
    rows = 200
    logits = torch.linspace(-2, 2, CODES).repeat(rows, TOKENS, 1)
    logits[..., 5] = -math.inf
    drawn, log_probs = draw_codes(logits, all_masked(rows), generators(*range(rows)))
    probabilities = logits[0, 0].double().softmax(-1)
    share = torch.bincount(drawn.flatten(), minlength=CODES).double() / drawn.numel()
    assert ((share - probabilities).abs() <= 4 * (probabilities / drawn.numel()).sqrt()).all()
    assert share[5] == 0
    torch.testing.assert_close(log_probs.double(), probabilities.log()[drawn])


def test_uniform_logits_reach_every_code():
    drawn, _ = draw_codes(torch.zeros(64, TOKENS, 512), all_masked(64), generators(*range(64)))
    assert len(drawn.unique()) == 512


def test_temperature():
    logits = random_logits(2)
    greedy, _ = draw_codes(logits, all_masked(2), generators(1, 2), temperature=0)
    assert torch.equal(greedy, logits.argmax(-1))
    cold, log_probs = draw_codes(logits, all_masked(2), generators(1, 2), temperature=1e-3)
    assert (cold == greedy).float().mean() > 0.95
    # confidence is the model's own, not the tempered one
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, cold[..., None])[..., 0])
    with pytest.raises(ValueError, match="expected 0 or more"):
        draw_codes(logits, all_masked(2), generators(1, 2), temperature=-1)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit codes"):
        draw_codes(random_logits(2)[:, :5], all_masked(2), generators(1, 2))


def test_half_precision_logits():
    codes, _ = maskgit_step(random_logits(1).bfloat16(), all_masked(1), DecodingStep(), NUMBERS, generators(1))
    assert ((codes >= 0) & (codes < CODES)).all()


def test_mask_codes():
    codes = torch.randint(CODES, (3, TOKENS))
    masked = mask_codes(codes, torch.tensor([0, 10, TOKENS]), generators(1, 2, 3))
    assert (masked == MASKED_CODE).sum(-1).tolist() == [0, 10, TOKENS]
    known = masked != MASKED_CODE
    assert torch.equal(masked[known], codes[known])


# --- logits at masked places only, entropies


def half_known(rows):
    codes = all_masked(rows)
    for row in range(rows):
        codes[row, torch.randperm(TOKENS, generator=torch.Generator().manual_seed(row))[: 20 + row]] = row
    return codes


def test_masked_positions_come_first_and_in_order():
    codes = half_known(3)
    places = masked_positions(codes, TOKENS)
    for row in range(3):
        masked = (codes[row] == MASKED_CODE).nonzero().squeeze(1)
        assert torch.equal(places[row, : len(masked)], masked) and len(places[row].unique()) == TOKENS
    assert torch.equal(masked_positions(codes, 5), places[:, :5])


@pytest.mark.parametrize("step", ["maskgit", "ancestral", "entropy_bounded"])
@pytest.mark.parametrize("spare", [0, 3])
def test_logits_at_masked_places_are_enough(step, spare):
    codes, logits = half_known(3), random_logits(3)
    places = masked_positions(codes, TOKENS - 20 + spare)
    few = logits.gather(1, places[..., None].expand(-1, -1, CODES))

    def take(logits, places=None):
        rows = generators(1, 2, 3)
        if step == "maskgit":
            return maskgit_step(logits, codes, keep(17, 2.0), NUMBERS, rows, places)
        if step == "ancestral":
            return ancestral_step(logits, codes, FALL, NUMBERS, rows, places)
        return entropy_bounded_step(logits, codes, DecodingStep(), ImageSampling(entropy_bound=20.0), rows, places)

    for whole, part in zip(take(logits), take(few, places), strict=True):
        assert torch.equal(whole, part)
    with pytest.raises(ValueError, match="do not fit positions"):
        take(logits, places)


def test_maskgit_takes_a_count_for_each_row():
    left = torch.tensor([[5], [0], [60]])
    codes, _ = maskgit_step(random_logits(3), half_known(3), keep(left), NUMBERS, generators(1, 2, 3))
    assert (codes == MASKED_CODE).sum(-1).tolist() == [5, 0, TOKENS - 22 - 1]


def test_entropies():
    logits = torch.zeros(2, TOKENS, CODES)
    logits[:, 0, 1:] = -math.inf  # certain
    entropies = code_entropies(logits, all_masked(2))
    assert entropies[0, 0] == 0
    torch.testing.assert_close(entropies[:, 1:], torch.full((2, TOKENS - 1), math.log(CODES)))
    assert (code_entropies(logits, half_known(2))[half_known(2) != MASKED_CODE] == 0).all()


def test_entropy_bound_decides_how_many_are_revealed():
    """Uniform codes of entropy h: k of them may be revealed as long as (k - 1) h <= bound."""
    entropy = math.log(CODES)
    for bound, revealed in ((0.0, 1), (2.5 * entropy, 3), (4.01 * entropy, 5), (0.0, TOKENS)):
        logits, step = torch.zeros(2, TOKENS, CODES), DecodingStep(is_last=revealed == TOKENS)
        numbers = ImageSampling(entropy_bound=bound)
        codes, predicted = entropy_bounded_step(logits, all_masked(2), step, numbers, generators(1, 2))
        assert (codes != MASKED_CODE).sum(-1).tolist() == [revealed] * 2
        assert torch.equal(codes[codes != MASKED_CODE], predicted[codes != MASKED_CODE])
    # the surest first: the first half is certain and costs nothing
    logits = torch.zeros(1, TOKENS, CODES)
    logits[:, : TOKENS // 2, 0] = 100.0
    numbers = ImageSampling(entropy_bound=0.5)
    codes, _ = entropy_bounded_step(logits, all_masked(1), DecodingStep(), numbers, generators(1))
    assert (codes != MASKED_CODE).sum() == TOKENS // 2 + 1 and (codes[0, : TOKENS // 2] == 0).all()
    known = half_known(1)
    numbers = ImageSampling(entropy_bound=0)
    after, _ = entropy_bounded_step(random_logits(1), known, DecodingStep(), numbers, generators(1))
    assert torch.equal(after[known != MASKED_CODE], known[known != MASKED_CODE])
    assert (after == MASKED_CODE).sum() == (known == MASKED_CODE).sum() - 1


@pytest.mark.parametrize("step", ["maskgit", "ancestral", "entropy_bounded"])
def test_no_step_reads_a_value_back_from_the_device(step):
    """Fake tensors have shapes and no values: a loop that waits for a value would raise."""
    rows = generators(1, 2)
    with FakeTensorMode():
        codes = torch.empty(2, TOKENS, dtype=torch.long)
        places = masked_positions(codes, 10)
        logits = torch.empty(2, 10, CODES)
        if step == "maskgit":
            after, _ = maskgit_step(logits, codes, keep(3), NUMBERS, rows, places)
        elif step == "ancestral":
            after, _ = ancestral_step(logits, codes, FALL, NUMBERS, rows, places)
        else:
            after, _ = entropy_bounded_step(logits, codes, DecodingStep(), NUMBERS, rows, places)
        assert after.shape == (2, TOKENS)
        with pytest.raises(DataDependentOutputException):
            after.sum().item()
