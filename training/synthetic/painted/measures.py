"""
Exact metrics on painted faces, whose every attribute is known: pure functions on predictions and truths.

Pictures are compared through the judge's readings ([`~unif2ace.training.evaluation.judge.UniF2aceJudge`]), captions
through the parser, answers by exact match. Every mean comes with a bootstrap interval over pictures.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ...data.language.attributes import ATTRIBUTES, COARSE_ATTRIBUTES
from ...data.language.questions import Question, find_signs, is_correct, normalize_answer
from ...evaluation.statistics import lift, mean_with_interval, ratio_with_interval, with_interval


# Where the judge is hardly better than always giving the commonest answer, a lift would be noise divided by nothing.
MIN_HEADROOM = 0.02


# ---------------------------------------------------------------------------------------------------------------------
# Image tokenizer
# ---------------------------------------------------------------------------------------------------------------------


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
    return {
        "used": int((counts > 0).sum()),
        "size": codebook_size,
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def score_reconstructions(
    on_reconstructions: Mapping[str, Sequence[str]],
    on_originals: Mapping[str, Sequence[str]],
    attributes: Sequence[Mapping[str, str]],
    visible: Sequence[Mapping[str, bool]],
    seed: int = 0,
) -> dict:
    """
    What the judge still reads in reconstructions.

    Args:
        on_reconstructions, on_originals (`dict[str, list[str]]`): Readings of the judge, one for each picture.
        attributes (`list[dict[str, str]]`): Painted attributes of each picture.
        visible (`list[dict[str, bool]]`): Which of them the original shows; only these count.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        `dict`: `judge_loss` (the mean over attributes of original minus reconstruction accuracy, with interval),
        `originals` and `reconstructions` (mean accuracies), `attributes` (cases and both accuracies of each).
    """
    counted, originals = cases_and_hits(on_originals, attributes, visible)
    _, reconstructions = cases_and_hits(on_reconstructions, attributes, visible)
    present = counted.sum(axis=0) > 0

    def difference(weights):
        cases = weights @ counted[:, present]
        lost = weights @ (originals - reconstructions)[:, present]
        return np.nanmean(np.divide(lost, cases, out=np.full(lost.shape, np.nan), where=cases > 0), axis=1)

    rows = {}
    for place, name in enumerate(ATTRIBUTES):
        if present[place]:
            cases = counted[:, place].sum()
            rows[name] = {
                "cases": int(cases),
                "originals": float(originals[:, place].sum() / cases),
                "reconstructions": float(reconstructions[:, place].sum() / cases),
            }
    return {
        "judge_loss": with_interval(difference, len(attributes), seed),
        "originals": float(np.mean([row["originals"] for row in rows.values()])),
        "reconstructions": float(np.mean([row["reconstructions"] for row in rows.values()])),
        "attributes": rows,
    }


def cases_and_hits(
    predicted: Mapping[str, Sequence[str]],
    attributes: Sequence[Mapping[str, str]],
    counted: Sequence[Mapping[str, bool]],
) -> tuple[np.ndarray, np.ndarray]:
    """
    Which cases count, and which of these are right.

    Args:
        predicted (`dict[str, list[str]]`): Readings of the judge, one for each picture.
        attributes (`list[dict[str, str]]`): True (or asked for) attributes of each picture.
        counted (`list[dict[str, bool]]`): Which of them count.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: two `(pictures, attributes)` arrays of 0 and 1, columns as in `ATTRIBUTES`.
    """
    shape = (len(attributes), len(ATTRIBUTES))
    cases, hits = np.zeros(shape), np.zeros(shape)
    for place, name in enumerate(ATTRIBUTES):
        for row, truth in enumerate(attributes):
            if counted[row].get(name, False):
                cases[row, place] = 1
                hits[row, place] = predicted[name][row] == truth[name]
    return cases, hits


# ---------------------------------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------------------------------


def score_generation(
    on_generated: Sequence[Mapping[str, Sequence[str]]],
    on_originals: Mapping[str, Sequence[str]],
    attributes: Sequence[Mapping[str, str]],
    counted: Sequence[Mapping[str, bool]],
    seed: int = 0,
) -> dict:
    """
    Whether generated faces show what was asked for.

    Args:
        on_generated (`list[dict[str, list[str]]]`):
            Readings of the judge on the generated faces, for each random seed one for each prompt.
        on_originals (`dict[str, list[str]]`): Its readings on the original paintings, which set the ceiling.
        attributes (`list[dict[str, str]]`): The attributes asked for.
        counted (`list[dict[str, bool]]`): Which of them count: those that sentence and painting show.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        `dict`: `attributes` (name -> `cases`, `accuracy`, `majority`, `judge`, and `lift`, `None` where the judge is
        less than `MIN_HEADROOM` above the majority), `left_out` (those names), `accuracy` (mean over all attributes,
        with interval), `lift` and `coarse_lift` (means over the attributes that have a lift, with intervals), their
        numbers `in_lift` and `in_coarse_lift`, `pooled_lift` (the lift of the mean accuracies of the same attributes,
        which attributes with little headroom do not dominate) and `seed_lifts` (the mean lift of each seed alone).
        Means are `None` when no attribute has a lift. The bootstrap resamples pictures and keeps majority and ceiling.
    """
    cases, judged = cases_and_hits(on_originals, attributes, counted)
    every_seed = [cases_and_hits(predicted, attributes, counted)[1] for predicted in on_generated]
    hits = np.mean(every_seed, axis=0)
    totals = cases.sum(axis=0)
    present = np.flatnonzero(totals)
    names = list(ATTRIBUTES)

    rows: dict[str, dict] = {}
    for place in present:
        name = names[place]
        values = Counter(truth[name] for truth, shown in zip(attributes, counted, strict=True) if shown.get(name))
        row = {
            "cases": int(totals[place]),
            "accuracy": float(hits[:, place].sum() / totals[place]),
            "majority": values.most_common(1)[0][1] / int(totals[place]),
            "judge": float(judged[:, place].sum() / totals[place]),
        }
        measurable = row["judge"] - row["majority"] >= MIN_HEADROOM
        rows[name] = row | {"lift": lift(row["accuracy"], row["majority"], row["judge"]) if measurable else None}

    def accuracies(weights, chosen, of=hits):
        total = weights @ cases[:, chosen]
        return np.divide(weights @ of[:, chosen], total, out=np.full(total.shape, np.nan), where=total > 0)

    def mean_lift(chosen, of=hits):
        floor = np.array([rows[names[place]]["majority"] for place in chosen])
        room = np.array([rows[names[place]]["judge"] for place in chosen]) - floor
        return lambda weights: np.nanmean((accuracies(weights, chosen, of) - floor) / room, axis=1)

    def pooled_lift(chosen):
        floor = np.mean([rows[names[place]]["majority"] for place in chosen])
        room = np.mean([rows[names[place]]["judge"] for place in chosen]) - floor
        return lambda weights: (np.nanmean(accuracies(weights, chosen), axis=1) - floor) / room

    with_lift = [place for place in present if rows[names[place]]["lift"] is not None]
    coarse = [place for place in with_lift if names[place] in COARSE_ATTRIBUTES]
    count = len(attributes)
    return {
        "accuracy": with_interval(lambda weights: np.nanmean(accuracies(weights, present), axis=1), count, seed),
        "lift": with_interval(mean_lift(with_lift), count, seed) if with_lift else None,
        "in_lift": len(with_lift),
        "coarse_lift": with_interval(mean_lift(coarse), count, seed) if coarse else None,
        "in_coarse_lift": len(coarse),
        "pooled_lift": with_interval(pooled_lift(with_lift), count, seed) if with_lift else None,
        "seed_lifts": [float(mean_lift(with_lift, one)(np.ones((1, count)))[0]) for one in every_seed if with_lift],
        "left_out": [name for name, row in rows.items() if row["lift"] is None],
        "attributes": rows,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def score_answers(questions: Sequence[Sequence[Question]], answers: Sequence[Sequence[str]], seed: int = 0) -> dict:
    """
    Accuracy of answers against the commonest answer to questions of the same kind about the same attribute.

    Args:
        questions (`list[list[Question]]`): The questions about each picture.
        answers (`list[list[str]]`): The answers given, in the same order.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        `dict`: `overall` and, in `kinds`, each kind: `questions`, `accuracy` (with interval), `majority`, `lift` (with
        interval; `None` where the commonest answer is always right). The bootstrap resamples pictures and keeps the
        majority. `per_picture` is `(right, asked)`, two arrays with a number for each picture.
    """
    common: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for question in (question for of_picture in questions for question in of_picture):
        common[question.kind, question.attribute][_answer_key(question)] += 1
    usual = {group: answers.most_common(1)[0][0] for group, answers in common.items()}

    count = len(questions)
    totals, right, expected = (defaultdict(lambda: np.zeros(count)) for _ in range(3))
    for row, (asked, given) in enumerate(zip(questions, answers, strict=True)):
        for question, answer in zip(asked, given, strict=True):
            for group in ("overall", question.kind):
                totals[group][row] += 1
                right[group][row] += is_correct(question, answer)
                expected[group][row] += _answer_key(question) == usual[question.kind, question.attribute]
    scores = {group: _score_group(totals[group], right[group], expected[group], seed) for group in totals}
    per_picture = (right["overall"], totals["overall"])
    return {"overall": scores.pop("overall"), "kinds": scores, "per_picture": per_picture}


def _answer_key(question: Question) -> str:
    if question.kind == "reasoning":  # signs count in any order
        return " / ".join(sorted(find_signs(question.answer)))
    return normalize_answer(question.answer)


def _score_group(totals: np.ndarray, right: np.ndarray, expected: np.ndarray, seed: int) -> dict:
    accuracy = ratio_with_interval(right, totals, seed)
    majority = float(expected.sum() / totals.sum())
    scaled = None
    if majority < 1:
        scaled = {name: lift(accuracy[name], majority) for name in ("value", "low", "high")}
        scaled["replicates"] = [lift(value, majority) for value in accuracy["replicates"]]
    return {"questions": int(totals.sum()), "accuracy": accuracy, "majority": majority, "lift": scaled}


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------


def score_captions(
    stated: Sequence[Mapping[str, str]],
    attributes: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, str]],
    seed: int = 0,
) -> dict:
    """
    Whether generated captions say what is true, and how much of it.

    A stated attribute is right if it has the painted value, whether or not the picture shows it: a caption that names
    something hidden rightly is rewarded, one that guesses it wrongly is punished.

    Args:
        stated (`list[dict[str, str]]`): What each caption states, see
            [`~unif2ace.training.data.language.captions.parse_caption`].
        attributes (`list[dict[str, str]]`): Painted attributes of each picture.
        references (`list[dict[str, str]]`): What a full caption of each picture states.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        `dict`: `precision` (right facts over stated facts), `recall` (facts of the references that were stated rightly
        over facts of the references), `stated` (mean number of facts), each with interval; `reference_facts` (mean
        number); `attributes` (name -> `precision`, `recall`, `None` without a case, and the numbers of cases);
        `per_picture` is `(stated, stated rightly, in the reference, found of it)`, four arrays of numbers of facts.
    """
    told, right, found, wanted = ([] for _ in range(4))
    of_attribute = {name: Counter() for name in ATTRIBUTES}
    for said, truth, reference in zip(stated, attributes, references, strict=True):
        true_facts = {name for name, value in said.items() if truth[name] == value}
        told.append(len(said))
        right.append(len(true_facts))
        wanted.append(len(reference))
        found.append(sum(said.get(name) == value for name, value in reference.items()))
        for name in said:
            of_attribute[name].update(stated=1, right=name in true_facts)
        for name, value in reference.items():
            of_attribute[name].update(wanted=1, found=said.get(name) == value)
    rows = {
        name: {
            "stated": counts["stated"],
            "precision": counts["right"] / counts["stated"] if counts["stated"] else None,
            "wanted": counts["wanted"],
            "recall": counts["found"] / counts["wanted"] if counts["wanted"] else None,
        }
        for name, counts in of_attribute.items()
        if counts["stated"] or counts["wanted"]
    }
    return {
        "precision": ratio_with_interval(right, told, seed) if sum(told) else None,
        "recall": ratio_with_interval(found, wanted, seed),
        "stated": mean_with_interval(told, seed),
        "reference_facts": float(np.mean(wanted)),
        "attributes": rows,
        "per_picture": tuple(np.array(facts, dtype=float) for facts in (told, right, wanted, found)),
    }


__all__ = [
    "MIN_HEADROOM",
    "code_use",
    "cases_and_hits",
    "psnr",
    "score_answers",
    "score_captions",
    "score_generation",
    "score_reconstructions",
]
