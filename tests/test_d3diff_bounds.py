"""The enumerated toy of D3Diff: the theorem where it holds, and where it does not."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
from losses import d3diff_loss_padded

from unif2ace.modeling_unif2ace.objective_unif2ace import score_entropy, score_entropy_paper


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("d3diff_bounds", ROOT / "benchmarks" / "d3diff_bounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(toy):
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(15):
        made += [(toy.random_model(generator), None), toy.exact_model(generator)]
    return made


SEQUENCES = list(itertools.product(range(3), repeat=2))


def test_likelihoods_are_distributions(toy, models):
    for (model, joint), steps in itertools.product(models, (None, 2, 5)):
        probabilities = [math.exp(-toy.likelihood(model, x, steps)) for x in SEQUENCES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-9)
        if joint is not None and steps is None:
            assert probabilities == pytest.approx(joint.flatten().tolist(), abs=1e-9)


def test_the_training_loss_estimates_the_bound(toy, models):
    """The score term of the loss that trains, weighted 1/λ and averaged over all masks, is L1."""
    for (model, _), x in itertools.product(models[:6], SEQUENCES):
        a, b = x
        log_probs = [[model.known[0, b], model.known[1, a]]] * 2 + [[model.hidden[0], model.hidden[1]]]
        log_probs = torch.stack([torch.stack(row) for row in log_probs])
        masked = torch.tensor([[True, False], [False, True], [True, True]])
        loss = [
            d3diff_loss_padded(log_probs[i : i + 1], torch.tensor([x]), masked[i : i + 1]).score_loss.item()
            for i in range(3)
        ]
        # score_loss is (N/k)·(summed cross-entropy); each k counts 1/N of it, each mask of that k equally
        assert (loss[0] + loss[1]) / 2 / 2 + loss[2] / 2 == pytest.approx(
            toy.bound(*toy.masked_sums(model, x)), abs=1e-5
        )


def test_bound_holds_and_is_tight_for_exact_models(toy, models):
    for (model, joint), x in itertools.product(models, SEQUENCES):
        nll, bound = toy.likelihood(model, x), toy.bound(*toy.masked_sums(model, x))
        assert nll <= bound + 1e-9
        if joint is not None:
            assert nll == pytest.approx(bound, abs=1e-9)


def test_second_inequality_holds_as_a_long_sum_and_never_as_a_mean(toy, models):
    too_few = 0
    for (model, _), x in itertools.product(models, SEQUENCES):
        one, two = toy.masked_sums(model, x)
        bound = toy.bound(one, two)
        for steps in (4, 10, 50):
            assert bound <= toy.summed_loss(one, two, steps, weighted=False)
        too_few += bound > toy.summed_loss(one, two, 2, weighted=False)
        assert toy.mean_loss(one, two) < bound
    assert too_few > 0
    assert [toy.steps_needed(n) for n in (2, 16, 256)] == [4, 19, 277]


def test_t_step_likelihood_is_below_its_bound(toy, models):
    for (model, _), x, steps in itertools.product(models, SEQUENCES, (2, 3, 10)):
        one, two = toy.masked_sums(model, x)
        elbo = toy.summed_loss(one, two, steps, weighted=True)
        assert toy.likelihood(model, x, steps) <= elbo + 1e-9
        assert elbo <= toy.summed_loss(one, two, steps, weighted=False) + 1e-9


def test_literal_score_entropy_integrates_to_the_bound(toy, models):
    for (model, _), x in itertools.product(models[:2], SEQUENCES):
        assert toy.score_integral(model, x) == pytest.approx(toy.bound(*toy.masked_sums(model, x)), abs=1e-4)


@pytest.mark.parametrize("cut", [1e-1, 1e-2])
def test_literal_form_of_the_paper_diverges(toy, cut):
    """Its excess over RADD's form, integrated to λ = 1 - ε, is the stated function of ε, which has no limit."""
    points = 200_000
    ratio = (torch.arange(points, dtype=torch.float64) + 0.5) / points * (1 - cut)
    log_probs = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log().expand(points, -1)
    target = torch.zeros(points, dtype=torch.long)
    excess = score_entropy_paper(log_probs, target, ratio) - score_entropy(log_probs, target, ratio)
    integral = 2 * (1 - cut) * (ratio / (1 - ratio) * excess).mean().item()
    assert integral == pytest.approx(toy.literal_excess(2, cut), abs=1e-4)
    assert toy.literal_excess(2, 1e-2) == pytest.approx(5.3424, abs=1e-4)
    assert toy.literal_excess(256, 1e-6) == pytest.approx(3024.7748, abs=1e-4)


def test_document_holds_what_the_command_prints(toy, tmp_path):
    document = (ROOT / "docs" / "d3diff.md").read_text(encoding="utf-8")
    (tmp_path / "d3diff.md").write_text(document, encoding="utf-8")
    assert toy.main(["--write", str(tmp_path / "d3diff.md")]) == 0
    assert (tmp_path / "d3diff.md").read_text(encoding="utf-8") == document
