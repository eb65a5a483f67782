"""
Exact measures of faces whose attributes are known: pure functions of predictions and truths.

Pictures are compared through a classifier's readings ([`~unif2ace.training.evaluation.judge.UniF2aceJudge`]), captions
through the parser, answers by exact match. Every mean comes with a bootstrap interval over pictures.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.language.attributes import ATTRIBUTES, COARSE_ATTRIBUTES
from ..data.language.questions import Question, find_signs, is_correct, normalize_answer
from .statistics import Statistic, lift, ratio_with_interval, with_interval


# Where the judge is hardly better than always giving the commonest answer, a lift would be noise divided by nothing.
MIN_HEADROOM = 0.02

Attributes = Sequence[Mapping[str, str]]  # of each picture those that count


def psnr(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Peak signal-to-noise ratio of each picture.

    Args:
        pictures, others (`np.ndarray` of uint8 and shape `(count, height, width, 3)`): Originals and reconstructions.

    Returns:
        `np.ndarray` of shape `(count,)`: decibels; infinite where the two are equal.

    Raises:
        ValueError: if dtypes or shapes differ from that.
    """
    if pictures.dtype != np.uint8 or others.dtype != np.uint8 or pictures.shape != others.shape or pictures.ndim != 4:
        raise ValueError(
            f"got {pictures.dtype} {pictures.shape} and {others.dtype} {others.shape}, expected uint8 of one shape "
            "(count, height, width, 3)"
        )
    error = ((pictures.astype(np.float64) - others) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def code_use(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
    """
    How much of a codebook is in use.

    Args:
        codes (`np.ndarray` of integers): Codes of any shape.
        codebook_size (`int`): Number of codes that there are.

    Returns:
        `dict[str, float]`: `used` (codes that occur), `size`, and `perplexity`, e to the entropy of their frequencies.
    """
    counts = np.bincount(np.asarray(codes).ravel(), minlength=codebook_size)
    if len(counts) > codebook_size:
        raise ValueError(f"there is a code {len(counts) - 1}, expected codes below codebook_size={codebook_size}")
    share = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return {"used": int((counts > 0).sum()), "size": codebook_size, "perplexity": perplexity}


def cases_and_hits(predicted: Mapping[str, Sequence[str]], attributes: Attributes) -> tuple[np.ndarray, np.ndarray]:
    """
    Which cases count, and which of these are right.

    Args:
        predicted (`dict[str, list[str]]`): Readings of the judge, one for each picture.
        attributes (`list[dict[str, str]]`):
            Attributes of each picture that count: asked for, or seen. What the judge does not know is left out.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: two `(pictures, attributes)` arrays of 0 and 1, columns as in `ATTRIBUTES`.
    """
    cases, hits = np.zeros((2, len(attributes), len(ATTRIBUTES)))
    for place, name in enumerate(ATTRIBUTES):
        for row, truth in enumerate(attributes):
            if name in predicted and name in truth:
                cases[row, place] = 1
                hits[row, place] = predicted[name][row] == truth[name]
    return cases, hits


def score_reconstructions(
    on_reconstructions: Mapping[str, Sequence[str]],
    on_originals: Mapping[str, Sequence[str]],
    attributes: Attributes,
) -> dict:
    """
    What the judge still reads in reconstructions.

    Args:
        on_reconstructions, on_originals (`dict[str, list[str]]`): Readings of the judge, one for each picture.
        attributes (`list[dict[str, str]]`): Attributes that each original shows.

    Returns:
        `dict`: `judge_loss` (the mean over attributes of original minus reconstruction accuracy, with interval),
        `originals` and `reconstructions` (mean accuracies), `attributes` (cases and both accuracies of each).
    """
    counted, originals = cases_and_hits(on_originals, attributes)
    _, reconstructions = cases_and_hits(on_reconstructions, attributes)
    present = np.flatnonzero(counted.sum(axis=0))
    names = list(ATTRIBUTES)
    rows = {
        names[place]: {
            "cases": int(counted[:, place].sum()),
            "originals": float(originals[:, place].sum() / counted[:, place].sum()),
            "reconstructions": float(reconstructions[:, place].sum() / counted[:, place].sum()),
        }
        for place in present
    }
    lost = _accuracies(counted[:, present], (originals - reconstructions)[:, present])
    means = {kind: float(np.mean([row[kind] for row in rows.values()])) for kind in ("originals", "reconstructions")}
    judge_loss = with_interval(lambda weights: np.nanmean(lost(weights), axis=1), len(attributes))
    return {"judge_loss": judge_loss, **means, "attributes": rows}


def _accuracies(cases: np.ndarray, hits: np.ndarray) -> Statistic:
    """From weights `(samples, pictures)` to the share of hits of each attribute `(samples, attributes)`."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ cases
        return np.divide(weights @ hits, total, out=np.full(total.shape, np.nan), where=total > 0)

    return statistic


def score_generation(
    on_generated: Sequence[Mapping[str, Sequence[str]]],
    on_originals: Mapping[str, Sequence[str]],
    attributes: Attributes,
) -> dict:
    """
    Whether generated faces show what was asked for.

    Args:
        on_generated (`list[dict[str, list[str]]]`): The judge's readings, for each random seed one for each prompt.
        on_originals (`dict[str, list[str]]`): Its readings on the original pictures, which set the ceiling.
        attributes (`list[dict[str, str]]`): The attributes asked for that count.

    Returns:
        `dict`: `attributes` (name -> `cases`, `accuracy`, `majority`, `judge`, and `lift`, `None` where the judge is
        less than `MIN_HEADROOM` above the majority), `left_out` (those names), `accuracy` (mean over all attributes,
        with interval), `lift` and `coarse_lift` (means over the attributes that have a lift, with intervals), their
        numbers `in_lift` and `in_coarse_lift`, `pooled_lift` (the lift of the mean accuracies of the same attributes,
        which attributes with little headroom do not dominate) and `seed_lifts` (the mean lift of each seed alone).
        Means are `None` when no attribute has a lift. The bootstrap resamples pictures and keeps majority and ceiling.
    """
    cases, judged = cases_and_hits(on_originals, attributes)
    every_seed = [cases_and_hits(predicted, attributes)[1] for predicted in on_generated]
    hits = np.mean(every_seed, axis=0)
    totals = cases.sum(axis=0)
    present, names, count = np.flatnonzero(totals), list(ATTRIBUTES), len(attributes)
    floors, ceilings, rows = np.zeros(len(names)), np.zeros(len(names)), {}
    for place in present:
        asked = Counter(truth[names[place]] for truth, case in zip(attributes, cases[:, place], strict=True) if case)
        floors[place] = asked.most_common(1)[0][1] / totals[place]
        ceilings[place] = judged[:, place].sum() / totals[place]
        accuracy = float(hits[:, place].sum() / totals[place])
        floor, ceiling = float(floors[place]), float(ceilings[place])
        of_lift = lift(accuracy, floor, ceiling) if ceiling - floor >= MIN_HEADROOM else None
        row = {"cases": int(totals[place]), "accuracy": accuracy, "majority": floor, "judge": ceiling}
        rows[names[place]] = row | {"lift": of_lift}

    def mean_lift(chosen: list[int], of: np.ndarray = hits) -> Statistic:
        accuracies = _accuracies(cases[:, chosen], of[:, chosen])
        floor, room = floors[chosen], (ceilings - floors)[chosen]
        return lambda weights: np.nanmean((accuracies(weights) - floor) / room, axis=1)

    def pooled_lift(chosen: list[int]) -> Statistic:
        accuracies = _accuracies(cases[:, chosen], hits[:, chosen])
        floor, room = floors[chosen].mean(), (ceilings - floors)[chosen].mean()
        return lambda weights: (np.nanmean(accuracies(weights), axis=1) - floor) / room

    with_lift = [place for place in present if rows[names[place]]["lift"] is not None]
    coarse = [place for place in with_lift if names[place] in COARSE_ATTRIBUTES]
    everything = _accuracies(cases[:, present], hits[:, present])
    return {
        "accuracy": with_interval(lambda weights: np.nanmean(everything(weights), axis=1), count),
        "lift": with_interval(mean_lift(with_lift), count) if with_lift else None,
        "in_lift": len(with_lift),
        "coarse_lift": with_interval(mean_lift(coarse), count) if coarse else None,
        "in_coarse_lift": len(coarse),
        "pooled_lift": with_interval(pooled_lift(with_lift), count) if with_lift else None,
        "seed_lifts": [float(mean_lift(with_lift, one)(np.ones((1, count)))[0]) for one in every_seed if with_lift],
        "left_out": [name for name, row in rows.items() if row["lift"] is None],
        "attributes": rows,
    }


def score_answers(questions: Sequence[Sequence[Question]], answers: Sequence[Sequence[str]]) -> dict:
    """
    Accuracy of answers against the commonest answer to questions of the same kind about the same attribute.

    Args:
        questions (`list[list[Question]]`): The questions about each picture.
        answers (`list[list[str]]`): The answers given, in the same order.

    Returns:
        `dict`: `overall` and, in `kinds`, each kind: `questions`, `accuracy` (with interval), `majority`, `lift` (with
        interval; `None` where the commonest answer is always right). The bootstrap resamples pictures and keeps the
        majority. `per_picture` is `(right, asked)`, two arrays with a number for each picture.
    """
    common: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for question in (question for of_picture in questions for question in of_picture):
        common[question.kind, question.attribute][_answer_key(question)] += 1
    usual = {group: answers.most_common(1)[0][0] for group, answers in common.items()}

    totals, right, expected = (defaultdict(lambda: np.zeros(len(questions))) for _ in range(3))
    for row, (asked, given) in enumerate(zip(questions, answers, strict=True)):
        for question, answer in zip(asked, given, strict=True):
            for group in ("overall", question.kind):
                totals[group][row] += 1
                right[group][row] += is_correct(question, answer)
                expected[group][row] += _answer_key(question) == usual[question.kind, question.attribute]
    scores = {}
    for group in totals:
        accuracy = ratio_with_interval(right[group], totals[group])
        majority = float(expected[group].sum() / totals[group].sum())
        scaled = None
        if majority < 1:
            scaled = {name: lift(accuracy[name], majority) for name in ("value", "low", "high")}
            scaled["replicates"] = [lift(value, majority) for value in accuracy["replicates"]]
        scores[group] = {"questions": int(totals[group].sum()), "accuracy": accuracy, "majority": majority}
        scores[group]["lift"] = scaled
    per_picture = (right["overall"], totals["overall"])
    return {"overall": scores.pop("overall"), "kinds": scores, "per_picture": per_picture}


def _answer_key(question: Question) -> str:
    if question.kind == "reasoning":  # signs count in any order
        return " / ".join(sorted(find_signs(question.answer)))
    return normalize_answer(question.answer)


def score_captions(stated: Attributes, attributes: Attributes, wanted: Sequence[Sequence[str]]) -> dict[str, dict]:
    """
    Which attributes captions state rightly.

    A stated attribute is right if it has the true value, whether or not the picture shows it: a caption that names
    something hidden rightly is rewarded, one that guesses it wrongly is punished.

    Args:
        stated (`list[dict[str, str]]`): What each caption states, see
            [`~unif2ace.training.data.language.captions.parse_caption`].
        attributes (`list[dict[str, str]]`): True attributes of each picture; statements about others do not count.
        wanted (`list[list[str]]`): Names of the attributes that a full caption of each picture states.

    Returns:
        `dict[str, dict]`: name -> `stated` and `wanted` (numbers of captions), `precision` and `recall` (`None`
        without a case).
    """
    counts = {name: Counter() for name in ATTRIBUTES}
    for said, truth, names in zip(stated, attributes, wanted, strict=True):
        for name in said.keys() & truth.keys():
            counts[name].update(stated=1, right=said[name] == truth[name])
        for name in names:
            counts[name].update(wanted=1, found=said.get(name) == truth[name])
    return {
        name: {
            "stated": of["stated"],
            "precision": of["right"] / of["stated"] if of["stated"] else None,
            "wanted": of["wanted"],
            "recall": of["found"] / of["wanted"] if of["wanted"] else None,
        }
        for name, of in counts.items()
        if of["stated"] or of["wanted"]
    }
