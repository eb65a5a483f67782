"""Mask schedule, mask counts, and randomness that depends on the step alone."""

import pytest
import torch

from unif2ace.modeling_unif2ace.objective_unif2ace import row_generator, sample_masks
from unif2ace.modeling_unif2ace.sampling_unif2ace import MASK_SCHEDULES, MaskSchedule


def test_cosine_counts():
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.99, 1.0])
    counts = (MaskSchedule().ratio(uniform) * 256).round().clamp(min=1)
    assert counts.tolist() == [256, 237, 181, 98, 4, 1]


def test_reveal_probabilities_of_four_steps():
    ratio = MaskSchedule().ratio(torch.linspace(0, 1, 5, dtype=torch.float64))
    reveal = (ratio[:-1] - ratio[1:]) / ratio[:-1]
    expected = torch.tensor([0.076120, 0.234633, 0.458804, 1.0], dtype=torch.float64)
    torch.testing.assert_close(reveal, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*MASK_SCHEDULES, "pow3", "pow0.5"])
def test_elbo_weight_is_the_log_derivative(name):
    schedule = MaskSchedule(name)
    uniform = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    ratio = schedule.ratio(uniform)
    (slope,) = torch.autograd.grad(ratio.sum(), uniform)
    torch.testing.assert_close(schedule.elbo_weight(ratio.detach()), -slope / ratio.detach())
    assert MaskSchedule().elbo_weight(torch.ones(1)).item() == 0


def test_masks_have_the_realised_ratio():
    masked, ratio = sample_masks(64, 16, row_generator(0, 0, 0))
    assert masked.dtype == torch.bool and masked.shape == (64, 16)
    torch.testing.assert_close(masked.float().mean(-1), ratio)
    assert masked.sum(-1).min() >= 1
    mean = sample_masks(20_000, 64, row_generator(1, 0, 0))[1].mean().item()
    assert mean == pytest.approx(2 / torch.pi, abs=0.01)  # E cos(πu/2)


def test_places_are_uniform():
    masked, ratio = sample_masks(20_000, 8, row_generator(2, 0, 0))
    torch.testing.assert_close(masked.float().mean(0), ratio.mean().expand(8), atol=0.015, rtol=0)


def test_generator_depends_on_every_number_and_on_nothing_else():
    def draw(*numbers):
        return torch.rand(4, generator=row_generator(*numbers)).tolist()

    first = draw(0, 5, 1)
    torch.manual_seed(123)
    assert draw(0, 5, 1) == first
    assert all(draw(*other) != first for other in ((1, 5, 1), (0, 6, 1), (0, 5, 0), (5, 0, 1)))


def test_no_rows():
    masked, ratio = sample_masks(0, 16, row_generator(0, 0, 0))
    assert masked.shape == (0, 16) and ratio.shape == (0,)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="mask schedule 'square' is unknown, expected one of cosine, linear"):
        MaskSchedule("square")
