"""Results of the suite `painted` as Markdown: the tables of `docs/quality.md` and of the model card."""

from collections.abc import Mapping

from ...data.language.attributes import COARSE_ATTRIBUTES
from ...evaluation.results import interval, number, table


MODEL_PARTS = ("tokenizer", "generation", "vqa", "captions")  # of the suite: those that these tables show
_DETAILS = {
    "generation": "Generated faces, attribute by attribute",
    "tokenizer": "Image tokenizer, attribute by attribute",
    "captions": "Captions, attribute by attribute",
}


def _details(results: Mapping) -> dict[str, dict]:
    """What each measured part found out in detail."""
    return {name: part["details"] for name, part in results["parts"].items() if part["details"]}


def painted_section(results: Mapping) -> str:
    """What a model card says of these results: how to read them, the main numbers, questions kind by kind."""
    parts = [explanation(results), summary_table(results)]
    if "vqa" in _details(results):
        parts += ["#### Questions, kind by kind", questions_table(results)]
    return "\n\n".join(parts)


def summary_table(results: Mapping) -> str:
    """The main numbers of each part that was measured; all tables take what `unif2ace evaluate` writes."""
    results = _details(results)
    rows = []
    if "tokenizer" in results:
        part = results["tokenizer"]
        use = part["code_use"]
        rows += [
            ["image tokenizer: PSNR, dB", interval(part["psnr"], 2)],
            ["image tokenizer: codes in use", f"{use['used']} of {use['size']} (perplexity {use['perplexity']:.0f})"],
            ["image tokenizer: judge's accuracy lost by reconstruction", interval(part["judge_loss"])],
        ]
    if "generation" in results:
        part = results["generation"]["stated"]
        everything = results["generation"]["visible"]
        rows += [
            [f"generated faces: mean lift, {part['in_lift']} attributes", interval(part["lift"])],
            [f"generated faces: mean lift, {part['in_coarse_lift']} coarse attributes", interval(part["coarse_lift"])],
            ["generated faces: pooled lift", interval(part["pooled_lift"])],
            [f"the same with what goes without saying, {everything['in_lift']} attributes: mean lift"]
            + [interval(everything["lift"])],
            [f"... {everything['in_coarse_lift']} coarse attributes: mean lift", interval(everything["coarse_lift"])],
        ]
    if "vqa" in results:
        part = results["vqa"]["overall"]
        rows += [
            ["questions: accuracy", interval(part["accuracy"])],
            [f"questions: lift over the commonest answer ({part['majority']:.3f})", interval(part["lift"])],
        ]
    if "captions" in results:
        part = results["captions"]
        rows += [
            ["captions: precision", interval(part["precision"])],
            ["captions: recall", interval(part["recall"])],
            [f"captions: attributes stated (full reference: {part['reference_facts']:.1f})"]
            + [interval(part["stated"], 1)],
        ]
    return table(["measure", "value [95 % interval]"], rows)


def questions_table(results: Mapping) -> str:
    """Accuracy of answers, kind by kind."""
    rows = [
        [kind.replace("_", "/"), str(score["questions"]), interval(score["accuracy"]), number(score["majority"])]
        + [interval(score["lift"])]
        for kind, score in _details(results)["vqa"]["kinds"].items()
    ]
    return table(["kind of question", "questions", "accuracy", "commonest answer", "lift"], rows)


def generation_table(results: Mapping) -> str:
    """Attributes of generated faces: asked for in words, and with what goes without saying."""
    stated, visible = (_details(results)["generation"][mode]["attributes"] for mode in ("stated", "visible"))
    rows = []
    for name, everything in visible.items():
        row = stated.get(name, {"cases": 0, "accuracy": None, "majority": None, "judge": None, "lift": None})
        label = f"**{name}**" if name in COARSE_ATTRIBUTES else name
        rows.append(
            [label, str(row["cases"]), *(number(row[key]) for key in ("accuracy", "judge", "majority", "lift"))]
            + [str(everything["cases"]), *(number(everything[key]) for key in ("accuracy", "lift"))]
        )
    header = ["attribute (coarse in bold)", "stated in", "accuracy", "judge on originals", "commonest", "lift"]
    return table([*header, "visible in", "accuracy", "lift"], rows)


def tokenizer_table(results: Mapping) -> str:
    """Accuracy of the judge on originals and on reconstructions."""
    rows = [
        [name, str(row["cases"]), number(row["originals"]), number(row["reconstructions"])]
        for name, row in _details(results)["tokenizer"]["attributes"].items()
    ]
    return table(["attribute", "visible in", "judge on originals", "judge on reconstructions"], rows)


def captions_table(results: Mapping) -> str:
    """Precision and recall of captions."""
    rows = [
        [name, str(row["stated"]), number(row["precision"]), str(row["wanted"]), number(row["recall"])]
        for name, row in _details(results)["captions"]["attributes"].items()
    ]
    return table(["attribute", "stated in", "precision", "in the reference", "recall"], rows)


def explanation(results: Mapping) -> str:
    """What was measured and how to read it."""
    settings = results["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    return (
        f"Measured on the first {settings['count']} faces of the `{settings['split']}` split of the painted faces, "
        f"none of which was trained on; generation with {settings['steps']} steps, guidance "
        f"{settings['guidance']:g} and the seeds {seeds}; intervals are 95 % bootstrap intervals over pictures.\n\n"
        "*Lift* is (accuracy − commonest) / (judge − commonest): 0 is what always answering the commonest value of "
        "the test cases gets, 1 is what the judge, a classifier trained on original paintings, reads in originals. A "
        "generated face is judged on the attributes that its sentence states and that the original painting shows "
        "(found exactly, by re-rendering). *With what goes without saying* counts every visible attribute: a full "
        "description that mentions no hat asks for none. Attributes on which the judge is less than 0.02 above the "
        "commonest value have no lift (a dash) and are left out of the means; those that are only ever stated with "
        "one value, like a mask, are among them. For questions the ceiling is 1. *Precision* is the share of a "
        "caption's statements that are true, *recall* the share of a full reference caption's that it makes."
    )


def quality_markdown(results: Mapping) -> str:
    """The whole report, for `docs/quality.md`."""
    tables = {"generation": generation_table, "tokenizer": tokenizer_table, "captions": captions_table}
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = ["# Quality on painted faces", explanation(results), summary_table(results)]
    if "vqa" in _details(results):
        parts += ["## Questions, kind by kind", questions_table(results)]
    for name, title in _DETAILS.items():
        if name in _details(results):
            parts += [f"## {title}", tables[name](results)]
    settings = results["settings"]
    parts += [
        "## How to measure it again",
        "```bash\npython -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 "
        "--out runs/painted\n"
        "python -m unif2ace.training.synthetic.painted.dataset --split test --count 1000 --out runs/painted\n"
        "python -m unif2ace.training.synthetic.train_encoders judge "
        "--config training/synthetic/configs/encoders-faces.yaml\n"
        "python benchmarks/quality.py\n```",
        f"Model: `{settings['model']}`, SHA-256 of configuration and weights `{settings['model_sha256']}`. "
        f"Versions: {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


__all__ = ["MODEL_PARTS", "explanation", "painted_section", "quality_markdown", "questions_table", "summary_table"]
