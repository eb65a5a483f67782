"""D3Diff and balance losses against values worked out by hand and against the literal score entropy."""

import copy
import itertools
import math

import pytest
import torch
from losses import balance_of_logits, d3diff_loss_padded
from torch.nn import functional as F

from unif2ace.modeling_unif2ace.objective_unif2ace import (
    WEIGHTINGS,
    balance_loss,
    d3diff_loss,
    router_usage,
    score_entropy,
    score_entropy_paper,
)
from unif2ace.modeling_unif2ace.sampling_unif2ace import MaskSchedule


LOGITS = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
TARGET = torch.tensor([0])


@pytest.mark.parametrize(
    ("alpha", "radd", "paper", "gradient"),
    [
        (0.9, 12.961707, 13.013463, [-6.868055, 0.784299, 0.288527, 5.795228]),
        (0.5, 1.440190, 1.747043, [-0.763117, 0.087144, 0.032059, 0.643914]),
        (0.1, 0.160021, 0.904178, [-0.084791, 0.009683, 0.003562, 0.071546]),
    ],
)
def test_score_entropy_is_a_weighted_cross_entropy(alpha, radd, paper, gradient):
    ratio = torch.tensor([1 - alpha])
    odds = alpha / (1 - alpha)
    for literal, value in ((score_entropy, radd), (score_entropy_paper, paper)):
        logits = LOGITS.clone().requires_grad_()
        loss = literal(logits.log_softmax(-1), TARGET, ratio).sum()
        assert loss.item() == pytest.approx(value, abs=2e-5)
        loss.backward()
        torch.testing.assert_close(logits.grad[0], torch.tensor(gradient), atol=2e-5, rtol=0)

    logits = LOGITS.clone().requires_grad_()
    (odds * F.cross_entropy(logits, TARGET)).backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor(gradient), atol=2e-5, rtol=0)


def _batch_of_known_cross_entropy():
    cross_entropy = torch.tensor([[0.5, 1.0, 2.0, 0.25], [3.0, 0.5, 1.5, 1.0]], dtype=torch.float64)
    logits = torch.stack([-cross_entropy, torch.log1p(-torch.exp(-cross_entropy))], dim=-1)
    masked = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    return logits, torch.zeros(2, 4, dtype=torch.long), masked


def test_position_weights_multiply_both_terms_and_leave_the_token_loss_alone():
    logits, targets, masked = _batch_of_known_cross_entropy()
    row, num_masked = masked.nonzero()[:, 0], masked.sum(-1)
    weight = torch.arange(1.0, 1 + len(row))
    plain = d3diff_loss(logits[masked], targets[masked], row, num_masked, 4)
    weighted = d3diff_loss(logits[masked], targets[masked], row, num_masked, 4, position_weight=weight)
    torch.testing.assert_close(weighted.token_loss, plain.token_loss)
    torch.testing.assert_close(weighted.mask_loss, (plain.token_loss * weight).mean())
    by_row = (plain.token_loss * weight / (num_masked / 4)[row]).sum() / 2
    torch.testing.assert_close(weighted.score_loss, by_row)


def _random_batch():
    """Four rows of eight codes, of which 6, 3, 7 and 3 are masked; logits of seven codes."""
    generator = torch.Generator().manual_seed(0)
    masked = torch.tensor([[1] * 6 + [0] * 2, [0, 1, 0, 1, 0, 0, 0, 1], [1] * 7 + [0]]).bool()
    masked = torch.cat([masked, masked.new_tensor([[0] * 5 + [1] * 3])])
    logits = torch.randn(4, 8, 7, generator=generator)
    return logits, torch.randint(0, 7, (4, 8), generator=generator), masked


@pytest.mark.parametrize(
    ("weighting", "score", "total"),
    [("inverse_ratio", 5.5, 1.455), ("elbo", 6.517826, 1.465178), ("dse", 2.0, 1.42)],
)
def test_d3diff_of_a_batch(weighting, score, total):
    logits, targets, masked = _batch_of_known_cross_entropy()
    loss = d3diff_loss_padded(logits, targets, masked, alpha=0.01, weighting=weighting)
    assert loss.mask_loss.item() == pytest.approx(1.4, abs=1e-6)
    assert loss.score_loss.item() == pytest.approx(score, abs=5e-6)
    assert loss.loss.item() == pytest.approx(total, abs=1e-6)


def test_alpha_zero_is_the_mask_term_exactly():
    logits, targets, masked = _batch_of_known_cross_entropy()
    loss = d3diff_loss_padded(logits, targets, masked, alpha=0)
    assert loss.loss.item() == loss.mask_loss.item()


def test_alpha_zero_is_masked_cross_entropy_bit_for_bit():
    logits, targets, masked = _random_batch()
    loss = d3diff_loss_padded(logits, targets, masked, alpha=0)
    assert torch.equal(loss.loss, F.cross_entropy(logits[masked], targets[masked], reduction="none").sum() / 19)
    assert loss.loss.item() == pytest.approx(F.cross_entropy(logits[masked], targets[masked]).item(), rel=1e-6)


@pytest.mark.parametrize("literal", [score_entropy, score_entropy_paper])
@pytest.mark.parametrize(
    ("weighting", "rate"),
    [
        ("dse", lambda ratio: torch.ones_like(ratio)),
        ("inverse_ratio", lambda ratio: 1 / (1 - ratio)),  # linear: σ' = λ'/(1 - λ)
        ("elbo", lambda ratio: math.pi / 2 * (1 - ratio**2).sqrt() / (1 - ratio)),  # cosine
    ],
)
def test_score_term_is_the_literal_score_entropy_times_the_rate(weighting, rate, literal):
    """
    All of a batch: same gradient, same value up to a constant without θ, which is 0 in RADD's parametrisation.
    """
    logits, targets, masked = _random_batch()
    ratio = (masked.sum(-1) / masked.shape[1])[masked.nonzero()[:, 0]].double()
    closed_logits, literal_logits = (logits.clone().double().requires_grad_() for _ in range(2))
    closed = d3diff_loss_padded(closed_logits, targets, masked, weighting=weighting).score_loss
    log_probs = literal_logits[masked].log_softmax(-1)
    written_out = (rate(ratio) * literal(log_probs, targets[masked], ratio)).sum() / len(masked)
    constant = 0.0
    if literal is score_entropy_paper:
        odds = (1 - ratio) / ratio
        constant = (rate(ratio) * (1 + odds * (1 - ratio).log())).sum() / len(masked)
    torch.testing.assert_close(written_out - constant, closed.double(), atol=1e-5, rtol=1e-5)
    closed.backward()
    written_out.backward()
    torch.testing.assert_close(closed_logits.grad, literal_logits.grad, atol=1e-6, rtol=1e-5)


def test_inverse_ratio_is_n_times_the_mean_of_row_means():
    """So with a per-row mask term D3Diff is (1 + α·N) times the mask term: a weight, not another loss."""
    logits, targets, masked = _random_batch()
    loss = d3diff_loss_padded(logits, targets, masked, alpha=0.01)
    rows = [F.cross_entropy(logits[i][masked[i]], targets[i][masked[i]]) for i in range(len(masked))]
    row_mean = torch.stack(rows).mean()
    torch.testing.assert_close(loss.score_loss, masked.shape[1] * row_mean)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("num_masked", [1, 16])
def test_first_and_last_mask_ratio_are_finite(weighting, num_masked):
    logits = torch.randn(2, 16, 7).requires_grad_()
    masked = torch.arange(16).expand(2, -1) < num_masked  # λ = 1/N and λ = 1
    loss = d3diff_loss_padded(logits, torch.zeros(2, 16, dtype=torch.long), masked, weighting=weighting).loss
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_text_to_image_row_is_zero(weighting):
    """No row means no row: not, through a slice like `[-0:]`, the whole batch."""
    logits = torch.randn(0, 7).requires_grad_()
    none = torch.zeros(0, dtype=torch.long)
    loss = d3diff_loss(logits, none, none, none, 16, weighting=weighting)
    loss.loss.backward()
    assert loss.loss.item() == loss.mask_loss.item() == loss.score_loss.item() == 0
    assert loss.token_loss.shape == (0,) and logits.grad.shape == (0, 7)


def test_logits_of_other_states_change_nothing(built):
    """The head is cut to the codes before the softmax: text, special and mask tokens have no say."""
    hidden_states = torch.randn(3, built.config.text_config.hidden_size)
    before = built.code_logits(hidden_states).log_softmax(-1)
    assert before.shape == (3, 2**built.config.vq_config.num_bits)
    changed = copy.deepcopy(built)
    with torch.no_grad():
        changed.lm_head.bias[: built.config.image_code_offset] += 100
        changed.lm_head.bias[built.config.mask_token_id :] += 100
    assert torch.equal(before, changed.code_logits(hidden_states).log_softmax(-1))


def test_linear_elbo_is_the_inverse_ratio():
    logits, targets, masked = _batch_of_known_cross_entropy()
    elbo = d3diff_loss_padded(logits, targets, masked, weighting="elbo", schedule=MaskSchedule("linear"))
    inverse = d3diff_loss_padded(logits, targets, masked, weighting="inverse_ratio")
    assert elbo.loss.item() == inverse.loss.item()


def test_packed_equals_padded_with_its_gradient():
    torch.manual_seed(0)
    masked = torch.rand(3, 8) < 0.5
    masked[:, 0] = True
    targets = torch.randint(0, 7, (3, 8))
    padded = torch.randn(3, 8, 7).requires_grad_()
    d3diff_loss_padded(padded, targets, masked).loss.backward()
    packed = padded.detach()[masked].clone().requires_grad_()
    d3diff_loss(packed, targets[masked], masked.nonzero()[:, 0], masked.sum(-1), 8).loss.backward()
    torch.testing.assert_close(padded.grad[masked], packed.grad)
    assert padded.grad[~masked].abs().max() == 0


def test_global_denominators_add_up():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 8, 7), torch.randint(0, 7, (4, 8))
    masked = torch.rand(4, 8) < 0.6
    masked[:, 0] = True
    whole = d3diff_loss_padded(logits, targets, masked)
    parts = [
        d3diff_loss_padded(logits[s], targets[s], masked[s], mask_denominator=masked.sum(), row_denominator=4)
        for s in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)


def test_nothing_masked_is_zero_with_zero_gradient():
    logits = torch.randn(2, 4, 5).requires_grad_()
    masked = torch.zeros(2, 4, dtype=torch.bool)
    loss = d3diff_loss_padded(logits, torch.zeros(2, 4, dtype=torch.long), masked).loss
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_the_power_of_the_inverse_ratio():
    """A continuous knob: at 0 the plain sum over a picture, at 1 the default bit for bit, beyond it weighs more."""
    logits, targets, masked = _random_batch()
    row, ratio = masked.nonzero()[:, 0], masked.sum(-1) / masked.shape[1]
    plain = d3diff_loss_padded(logits, targets, masked)
    for power in (0.0, 0.5, 1.0, 1.5):
        loss = d3diff_loss_padded(logits, targets, masked, weighting_power=power)
        expected = (plain.token_loss * ratio[row] ** -power).sum() / len(masked)
        torch.testing.assert_close(loss.score_loss, expected)
        assert torch.equal(loss.mask_loss, plain.mask_loss)
        elbo = d3diff_loss_padded(logits, targets, masked, weighting="elbo", weighting_power=power)
        assert torch.equal(elbo.score_loss, d3diff_loss_padded(logits, targets, masked, weighting="elbo").score_loss)
    assert torch.equal(d3diff_loss_padded(logits, targets, masked, weighting_power=1.0).loss, plain.loss)


def test_unknown_weighting_is_refused():
    logits, targets, masked = _batch_of_known_cross_entropy()
    with pytest.raises(ValueError, match="inverse_ratio"):
        d3diff_loss_padded(logits, targets, masked, weighting="uniform")


def test_the_bound_of_two_enumerated_tokens():
    """The 1/λ-weighted loss, averaged over masks, is a bound on the likelihood; the mean over t is not."""
    first = {None: [0.6, 0.4], 0: [0.8, 0.2], 1: [0.1, 0.9]}
    second = {None: [0.7, 0.3], 0: [0.5, 0.5], 1: [0.25, 0.75]}
    expected = {
        (0, 0): (0.843970, 0.891896),
        (0, 1): (1.801810, 2.355265),
        (1, 0): (2.120264, 2.134349),
        (1, 1): (1.255266, 1.256653),
    }
    for a, b in itertools.product((0, 1), repeat=2):
        # rows: only the first masked, only the second, both; the weights of the integral over λ are 1/k
        log_probs = torch.tensor([[first[b], second[a]], [first[b], second[a]], [first[None], second[None]]]).log()
        masked = torch.tensor([[True, False], [False, True], [True, True]])
        targets = torch.tensor([[a, b]]).expand(3, 2)
        rows = [
            d3diff_loss_padded(log_probs[i : i + 1], targets[i : i + 1], masked[i : i + 1]).score_loss.item()
            for i in range(3)
        ]
        # score_loss = (N/k)·summed loss; F(k)/k = score_loss/N, averaged over the subsets of size k
        bound = (rows[0] + rows[1]) / 2 / 2 + rows[2] / 2
        nll = -math.log(0.5 * first[None][a] * second[a][b] + 0.5 * second[None][b] * first[b][a])
        assert nll == pytest.approx(expected[a, b][0], abs=1e-6)
        assert bound == pytest.approx(expected[a, b][1], abs=1e-5)
        assert nll <= bound


@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.1])
def test_softmax_over_too_many_states_is_biased(alpha):
    """With non-codes in the softmax the paper's literal score is stationary where they hold the mass 1 - α."""
    share = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    odds = alpha / (1 - alpha)

    def gradient(probabilities, scale):
        logits = probabilities.log().requires_grad_()
        log_probs = logits.log_softmax(-1)[:4]
        (scale * log_probs.exp().sum() - odds * (share * log_probs).sum()).backward()
        return logits.grad.abs().max().item()

    shared = torch.cat([alpha * share, torch.full((3,), (1 - alpha) / 3, dtype=torch.float64)])
    assert gradient(shared, 1 / (1 - alpha)) < 1e-12
    codes_only = torch.cat([share * (1 - 1e-12), torch.full((3,), 1e-12 / 3, dtype=torch.float64)])
    assert gradient(codes_only, odds) < 1e-9


def test_float32_edges():
    log_probs = torch.full((1, 8192), -math.log(8192))
    target = torch.tensor([0])
    almost_clean = torch.tensor([1 / 256])
    closed = d3diff_loss(log_probs, target, target, torch.tensor([1]), 256, weighting="dse").score_loss
    for value in (
        score_entropy(log_probs, target, almost_clean),
        score_entropy_paper(log_probs, target, almost_clean),
        closed,
    ):
        assert value.item() == pytest.approx(2297.78, rel=1e-5)
    all_masked = torch.ones(1)
    assert score_entropy(log_probs, target, all_masked).isnan().all()
    assert score_entropy_paper(log_probs, target, all_masked).isnan().all()
    many = log_probs.expand(256, -1)
    closed = d3diff_loss(many, target.expand(256), target.expand(256), torch.tensor([256]), 256, weighting="dse")
    assert closed.score_loss.item() == 0


PROBABILITIES = torch.tensor([[[0.5, 0.3, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1]]])


def test_balance_of_known_probabilities():
    usage = router_usage((PROBABILITIES.log(),), None, top_k=2)
    torch.testing.assert_close(usage.load[0], torch.tensor([0.25, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(usage.probability[0], torch.tensor([0.3, 0.45, 0.15, 0.1]))
    assert balance_of_logits((PROBABILITIES.log(),), None, top_k=2).item() == pytest.approx(1.35, abs=1e-6)


def test_balance_leaves_padding_out():
    padded = torch.cat([PROBABILITIES.log(), torch.randn(1, 3, 4)], dim=1)
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    assert balance_of_logits((padded,), mask, top_k=2).item() == pytest.approx(1.35, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_even_routing_gives_one(top_k):
    even = torch.eye(4).repeat(5, 1)[None] * 1e-3  # every expert is first equally often
    assert balance_of_logits((even, even), None, top_k).item() == pytest.approx(1.0, abs=1e-3)


def test_balance_of_an_empty_group_is_zero():
    logits = torch.zeros(0, 7, 4).requires_grad_()
    loss = balance_of_logits((logits,), torch.ones(0, 7), top_k=2)
    loss.backward()
    assert loss.item() == 0


def _some_routing(tokens=11, layers=2, experts=4):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(1, tokens, experts, generator=generator) for _ in range(layers))


def test_balance_does_not_depend_on_rows_padding_or_order():
    logits = _some_routing(12)
    alone = balance_of_logits(logits, None, top_k=2)
    in_rows = tuple(layer.view(3, 4, 4) for layer in logits)
    torch.testing.assert_close(balance_of_logits(in_rows, None, top_k=2), alone)
    padded = tuple(F.pad(layer, (0, 0, 2, 5), value=7.0) for layer in in_rows)  # both sides, as the two tasks are
    mask = F.pad(torch.ones(3, 4), (2, 5))
    torch.testing.assert_close(balance_of_logits(padded, mask, top_k=2), alone)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(balance_of_logits(tuple(layer[:, order] for layer in logits), None, top_k=2), alone)
    experts = [2, 0, 3, 1]
    torch.testing.assert_close(balance_of_logits(tuple(layer[..., experts] for layer in logits), None, top_k=2), alone)
    doubled = tuple(torch.cat([layer, layer], dim=1) for layer in logits)
    torch.testing.assert_close(balance_of_logits(doubled, None, top_k=2), alone)


def test_balance_of_parts_adds_up_with_the_load_of_the_whole():
    logits = _some_routing(12)
    whole = router_usage(logits, None, top_k=2)
    total, counts = 0.0, 0.0
    for part in (slice(0, 3), slice(3, 12)):
        usage = router_usage(tuple(layer[:, part] for layer in logits), None, 2, num_tokens=12)
        counts = counts + usage.counts
        usage.load = whole.load
        total = total + balance_loss(usage)
    torch.testing.assert_close(total, balance_loss(whole))
    torch.testing.assert_close(counts / counts.sum(-1, keepdim=True), whole.load)


def test_load_has_no_gradient_and_probability_pushes_away_from_the_busiest():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0]] * 6]).requires_grad_()
    balance_of_logits((logits,), None, top_k=1).backward()
    assert logits.grad[0, 0, 0] > 0 and (logits.grad[0, 0, 1:] < 0).all()


def test_only_score_is_the_mask_weight_zero():
    logits, targets, masked = _random_batch()
    loss = d3diff_loss_padded(logits, targets, masked, alpha=0.01, mask_weight=0.0)
    assert loss.loss.item() == pytest.approx(0.01 * loss.score_loss.item(), rel=1e-6)
    scaled = d3diff_loss_padded(logits, targets, masked, alpha=0.0, mask_weight=1.64)
    assert scaled.loss.item() == pytest.approx(1.64 * scaled.mask_loss.item(), rel=1e-6)
