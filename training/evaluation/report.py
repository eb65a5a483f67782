"""Results of the worlds' suites as Markdown: the tables of `docs/quality.md` and of the model card."""

from collections.abc import Mapping

from ..data.language.attributes import COARSE_ATTRIBUTES
from ..disclosure import public
from .results import interval, measures_of, number, settings_line, table


MODEL_PARTS = ("tokenizer", "generation", "vqa", "captions")  # of the suite: those that these tables show
_DETAILS = {
    "generation": "Generated faces, attribute by attribute",
    "tokenizer": "Image tokenizer, attribute by attribute",
    "captions": "Captions, attribute by attribute",
}


def _details(results: Mapping) -> dict[str, dict]:
    """What each measured part found out in detail."""
    return {name: part["details"] for name, part in results["parts"].items() if part["details"]}


def world_section(results: Mapping) -> str:
    """What a model card says of these results: how to read them, the main numbers, questions kind by kind."""
    parts = [explanation(results), summary_table(results)]
    if "vqa" in _details(results):
        parts += ["#### Questions, kind by kind", questions_table(results)]
    return "\n\n".join(parts)


def summary_table(results: Mapping) -> str:
    """The main numbers of each part that was measured; all tables take what `unif2ace evaluate` writes."""
    measures, details = measures_of(results), _details(results)
    use, lifts = details.get("tokenizer", {}).get("code_use", {}), details.get("generation", {})
    stated, visible = lifts.get("stated", {}), lifts.get("visible", {})
    majority = details.get("vqa", {}).get("overall", {}).get("majority")
    facts = details.get("captions", {}).get("reference_facts")
    rows = []

    def add(name: str, label: str, digits: int = 3):
        if name in measures:
            rows.append([label, interval(measures[name], digits)])

    add("tokenizer: psnr", "image tokenizer: PSNR, dB", 2)
    if use:
        shown = f"{use['used']} of {use['size']} (perplexity {use['perplexity']:.0f})"
        rows.append(["image tokenizer: codes in use", shown])
    add("tokenizer: judge_loss", "image tokenizer: judge's accuracy lost by reconstruction")
    add("generation: lift", f"generated faces: mean lift, {stated.get('in_lift')} attributes")
    coarse = f"{stated.get('in_coarse_lift')} coarse attributes"
    add("generation: coarse_lift", f"generated faces: mean lift, {coarse}")
    add("generation: pooled_lift", "generated faces: pooled lift")
    unsaid = f"the same with what goes without saying, {visible.get('in_lift')} attributes: mean lift"
    add("generation: lift_with_unsaid", unsaid)
    coarse = f"... {visible.get('in_coarse_lift')} coarse attributes: mean lift"
    add("generation: coarse_lift_with_unsaid", coarse)
    add("vqa: accuracy", "questions: accuracy")
    add("vqa: lift", f"questions: lift over the commonest answer ({number(majority)})")
    add("captions: precision", "captions: precision")
    add("captions: recall", "captions: recall")
    add("captions: attributes_stated", f"captions: attributes stated (full reference: {number(facts, 1)})", 1)
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
    source = public(settings.get("source", results["suite"]))
    seeds = ", ".join(map(str, settings["seeds"]))
    return (
        f"Measured on {settings['count']} faces of `{source}`, none of which was trained on; "
        f"generation with {settings['steps']} steps, guidance {settings['guidance']:g} and the seeds {seeds}; "
        "intervals are 95 % bootstrap intervals over pictures.\n\n"
        "*Lift* is (accuracy − commonest) / (judge − commonest): 0 is what always answering the commonest value of "
        "the test cases gets, 1 is what the judge, a classifier trained on original pictures, reads in originals. A "
        "generated face is judged on the attributes that its sentence states and that the original picture shows. "
        "*With what goes without saying* counts every visible attribute: a full "
        "description that mentions no hat asks for none. Attributes on which the judge is less than 0.02 above the "
        "commonest value have no lift (a dash) and are left out of the means; those that are only ever stated with "
        "one value, like a mask, are among them. For questions the ceiling is 1. *Precision* is the share of a "
        "caption's statements that are true, *recall* the share of a full reference caption's that it makes."
    )


def quality_markdown(results: Mapping) -> str:
    """The whole report, for `docs/quality.md`; whoever writes it says below how to measure it again."""
    tables = {"generation": generation_table, "tokenizer": tokenizer_table, "captions": captions_table}
    parts = [f"# Quality on {results['suite']} faces", explanation(results), summary_table(results)]
    if "vqa" in _details(results):
        parts += ["## Questions, kind by kind", questions_table(results)]
    for name, title in _DETAILS.items():
        if name in _details(results):
            parts += [f"## {title}", tables[name](results)]
    return "\n\n".join([*parts, settings_line(results)]) + "\n"


__all__ = ["MODEL_PARTS", "explanation", "world_section", "quality_markdown", "questions_table", "summary_table"]
