"""
Check the statements about D3Diff that can be checked exactly: every sequence of a toy with three codes and two
positions, under random and under exact models. Prints the tables of `docs/d3diff.md`.

    python benchmarks/d3diff_bounds.py
    python benchmarks/d3diff_bounds.py --write docs/d3diff.md

A "model" is the four conditional distributions that a masked model of two positions has: of either position with the
other one hidden, and with it known. Random models draw them independently, so they contradict each other as a trained
network's do; exact models take them from one joint distribution.
"""

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from reporting import put_section

from unif2ace.modeling_unif2ace.objective_unif2ace import WEIGHTINGS, score_entropy, score_weight
from unif2ace.modeling_unif2ace.sampling_unif2ace import MaskSchedule


VOCABULARY, LENGTH = 3, 2
TOLERANCE = 1e-9
STEPS = (2, 3, 4, 10, 100)


@dataclass
class Model:
    """`hidden[i]` (V,) is log p(x_i | both hidden), `known[i]` (V, V) log p(x_i | the other one), as [other, x_i]."""

    hidden: torch.Tensor
    known: torch.Tensor


def random_model(generator: torch.Generator) -> Model:
    """Four independent conditionals, with logits of standard deviation 1.5."""
    draw = torch.randn(LENGTH, 1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64) * 1.5
    log_probs = draw.log_softmax(-1)
    return Model(log_probs[:, 0], log_probs[:, 1:])


def exact_model(generator: torch.Generator) -> tuple[Model, torch.Tensor]:
    """The conditionals of a random joint distribution, and that distribution (V, V)."""
    joint = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).mul(1.5).flatten()
    joint = joint.softmax(0).view(VOCABULARY, VOCABULARY)
    hidden = torch.stack([joint.sum(1), joint.sum(0)]).log()
    known = torch.stack([(joint / joint.sum(0)).T, joint / joint.sum(1, keepdim=True)]).log()
    return Model(hidden, known), joint


def masked_sums(model: Model, x: tuple[int, int]) -> tuple[float, float]:
    """F(1) and F(2): the summed cross-entropy of the masked positions, averaged over the masks of one and of two."""
    a, b = x
    one = -(model.known[0, b, a] + model.known[1, a, b]).item() / 2
    two = -(model.hidden[0, a] + model.hidden[1, b]).item()
    return one, two


def likelihood(model: Model, x: tuple[int, int], steps: int | None = None) -> float:
    """
    -log p(x) of the sampler: positions are revealed one after the other in random order, or, with `steps` of a linear
    schedule, each with probability 1/t at step t, possibly both at once.
    """
    a, b = x
    p = {"a": model.hidden[0, a], "b": model.hidden[1, b], "a|b": model.known[0, b, a], "b|a": model.known[1, a, b]}
    p = {name: math.exp(value) for name, value in p.items()}
    in_turn = (p["a"] * p["b|a"] + p["b"] * p["a|b"]) / 2
    if steps is None:
        return -math.log(in_turn)
    total, still_hidden = 0.0, 1.0
    for t in range(steps, 0, -1):
        reveal = 1 / t
        total += still_hidden * (reveal**2 * p["a"] * p["b"] + 2 * reveal * (1 - reveal) * in_turn)
        still_hidden *= (1 - reveal) ** 2
    return -math.log(total)


def bound(one: float, two: float) -> float:
    """L1, the continuous-time bound: the integral of (1/λ)·E[masked cross-entropy] over λ, which is Σ F(k)/k."""
    return one + two / 2


def summed_loss(one: float, two: float, steps: int, weighted: bool) -> float:
    """
    Σ over t = 1 … T of E[masked cross-entropy] at λ = t/T: the paper's L2; with the weights 1/t the ELBO of T steps.
    """
    ratios = [t / steps for t in range(1, steps + 1)]
    return sum(
        (2 * ratio * (1 - ratio) * one + ratio**2 * two) * (1 / t if weighted else 1)
        for t, ratio in enumerate(ratios, start=1)
    )


def mean_loss(one: float, two: float) -> float:
    """E[masked cross-entropy] for λ uniform in [0, 1]: what drawing one λ a step, without a weight, trains."""
    return (one + two) / 3


def score_integral(model: Model, x: tuple[int, int], points: int = 4000) -> float:
    """
    L1 from the literal score entropy: the integral over the linear schedule of σ'(t)·E[score entropy], by midpoints.
    """
    a, b = x
    ratio = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    rate = 1 / (1 - ratio)  # σ' = λ'/(1 - λ)
    total = 0.0
    for log_probs, target, weight in (
        (model.known[0, b], a, ratio * (1 - ratio)),
        (model.known[1, a], b, ratio * (1 - ratio)),
        (model.hidden[0], a, ratio**2),
        (model.hidden[1], b, ratio**2),
    ):
        entropy = score_entropy(log_probs.expand(points, -1), torch.full((points,), target), ratio)
        total += (weight * rate * entropy).mean().item()
    return total


@dataclass
class Tally:
    """How many sequences a statement held for."""

    held: int = 0
    of: int = 0

    def add(self, holds: bool) -> None:
        """One more sequence."""
        self.held += holds
        self.of += 1

    def __str__(self) -> str:
        return f"{self.held} of {self.of}"


def enumerate_toy(models: int, seed: int) -> dict[str, Tally]:
    """Check every statement on all sequences of `models` random and as many exact models."""
    generator = torch.Generator().manual_seed(seed)
    names = {
        "nll": "−log p ≤ L1",
        "equal": "−log p = L1, exact models",
        "integral": "L1 = integral of the literal score entropy (first 20 models, 1e-4)",
        "elbo": "ELBO of T steps ≤ L2 as a sum over T steps, any T",
        "nll_T": "−log p of the T-step sampler ≤ ELBO of T steps, any T",
        **{f"sum_{steps}": f"L1 ≤ L2 as a sum over T = {steps} steps" for steps in STEPS},
        "mean": "L1 ≤ L2 as a mean over t",
        "nll_mean": "−log p ≤ L2 as a mean over t",
        "full": "L1 ≤ cross-entropy of the fully masked input, each sequence",
        "full_expected": "the same in expectation over the data, exact models",
    }
    tallies = {name: Tally() for name in names}
    for number in range(2 * models):
        is_exact = number % 2 == 1
        model, joint = exact_model(generator) if is_exact else (random_model(generator), None)
        expected_bound = expected_full = 0.0
        for x in itertools.product(range(VOCABULARY), repeat=LENGTH):
            one, two = masked_sums(model, x)
            nll, l1 = likelihood(model, x), bound(one, two)
            tallies["nll"].add(nll <= l1 + TOLERANCE)
            if is_exact:
                tallies["equal"].add(abs(nll - l1) < TOLERANCE)
                expected_bound += joint[x].item() * l1
                expected_full += joint[x].item() * two
            if number < 20:
                tallies["integral"].add(abs(score_integral(model, x) - l1) < 1e-4)
            for steps in STEPS:
                elbo, l2 = (summed_loss(one, two, steps, weighted) for weighted in (True, False))
                tallies["elbo"].add(elbo <= l2 + TOLERANCE)
                tallies["nll_T"].add(likelihood(model, x, steps) <= elbo + TOLERANCE)
                tallies[f"sum_{steps}"].add(l1 <= l2 + TOLERANCE)
            tallies["mean"].add(l1 <= mean_loss(one, two) + TOLERANCE)
            tallies["nll_mean"].add(nll <= mean_loss(one, two) + TOLERANCE)
            tallies["full"].add(l1 <= two + TOLERANCE)
        if is_exact:
            tallies["full_expected"].add(expected_bound <= expected_full + TOLERANCE)
    return {names[name]: tally for name, tally in tallies.items()}


def steps_needed(num_tokens: int) -> int:
    """
    The smallest T for which L1 ≤ L2 as a sum, whatever the model: the T-step sum must give each F(k) at least the
    weight 1/k that L1 gives it.
    """

    def sufficient(steps: int) -> bool:
        ratios = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        k = torch.arange(1, num_tokens + 1, dtype=torch.float64)
        n = torch.tensor(float(num_tokens), dtype=torch.float64)
        log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        log_weight = log_choose + k * ratios[:, None].log() + torch.special.xlog1py(n - k, -ratios[:, None])
        return bool((log_weight.exp().sum(0) >= 1 / k - 1e-12).all())

    low, high = 1, 2
    while not sufficient(high):
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sufficient(middle) else (middle, high)
    return high


def term_ratio(weighting: str, start: float, slope: float, num_tokens: int = 256, draws: int = 20_001) -> float:
    """
    Score term over mask term for images whose cross-entropy a token is `start + slope·λ`, by the cosine schedule.
    """
    schedule = MaskSchedule()
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    count = (schedule.ratio(uniform) * num_tokens).round().clamp(min=1)
    ratio = count / num_tokens
    summed = count * (start + slope * ratio)
    score = (score_weight(ratio, weighting, schedule) * summed).mean()
    return (score / (summed.sum() / count.sum())).item()


def literal_excess(num_tokens: int, cut: float) -> float:
    """
    What the literal score entropy in the paper's parametrisation adds to L1, integrated to λ = 1 - `cut` on the linear
    schedule: N·(-ln ε - 2 + 2ε - ε·ln ε), which grows without bound.
    """
    return num_tokens * (-math.log(cut) - 2 + 2 * cut - cut * math.log(cut))


def tables(models: int = 300, seed: int = 0) -> str:
    """All tables, as Markdown."""
    lines = [
        f"`{VOCABULARY}` codes, `{LENGTH}` positions, {models} random and {models} exact models, seed {seed}:",
        "",
    ]
    lines += ["| statement | holds for |", "|---|---|"]
    lines += [f"| {name} | {tally} |" for name, tally in enumerate_toy(models, seed).items()]
    lines += ["", "Steps T from which the sum L2 is a bound whatever the model, linear schedule:", ""]
    sizes = (2, 16, 64, 256)
    lines += ["| positions N | " + " | ".join(map(str, sizes)) + " |", "|---|" + "---|" * len(sizes)]
    lines += ["| smallest T | " + " | ".join(str(steps_needed(n)) for n in sizes) + " |"]
    cuts = (1e-2, 1e-4, 1e-6)
    lines += ["", "Added to L1 by the literal score entropy in the paper's parametrisation, cut off at λ = 1 − ε:", ""]
    lines += ["| ε | " + " | ".join(f"{cut:g}" for cut in cuts) + " |", "|---|" + "---|" * len(cuts)]
    for n in (2, 256):
        lines += [f"| N = {n} | " + " | ".join(f"{literal_excess(n, cut):.4f}" for cut in cuts) + " |"]
    lines += ["", "Score term over mask term at N = 256, cosine schedule, for three shapes of the cross-entropy:", ""]
    lines += ["| cross-entropy at mask ratio λ | " + " | ".join(WEIGHTINGS) + " |"]
    lines += ["|---|" + "---|" * len(WEIGHTINGS)]
    for start, slope in ((7.0, 0.0), (5.0, 3.0), (2.0, 6.5)):
        ratios = (f"{term_ratio(weighting, start, slope):.0f}" for weighting in WEIGHTINGS)
        lines.append(f"| {start:g}{f' + {slope:g}λ' if slope else ''} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Check what can be checked exactly about D3Diff, by enumeration.",
        epilog="example: python benchmarks/d3diff_bounds.py --write docs/d3diff.md",
    )
    parser.add_argument("--models", type=int, default=300, help="random, and as many exact models (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the models (default: 0)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this document")
    options = parser.parse_args(arguments)
    text = tables(options.models, options.seed)
    print(text)
    if options.write:
        put_section(options.write, "table", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
