"""
What outsiders see in rendered faces: detectors and nets trained on photographs, which no part of the renderer knows.

    python benchmarks/rendered.py --count 200 --into docs/rendered.md --sheet docs/rendered.jpg

Draws one picture of each of `--count` people of the validation split, as they come; `outsiders.py` has the judges.
`--frontal` draws the same people again looking ahead, in even light, without accessories.
`--visibility N` renders N faces again with every other value of every attribute and compares with the rules. Needs the
extras `synthetic` and `outsiders`.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from outsiders import Outsiders, agreement, correlation
from PIL import Image
from reporting import machine, put_section, table

from unif2ace.training.evaluation.results import interval
from unif2ace.training.evaluation.statistics import with_interval
from unif2ace.training.synthetic.rendered.people import PICTURES_PER_PERSON, Face, face_of
from unif2ace.training.synthetic.rendered.render import Renderer
from unif2ace.training.synthetic.rendered.visibility import seen_in, visible_attributes
from unif2ace.training.synthetic.rendered.vocabulary import RENDERED_ATTRIBUTES


PLAIN = {
    **{"eyewear": "none", "headwear": "none", "headphones": "no", "mask": "no", "blurry": "no", "lighting": "even"},
    **{"pose": "frontal", "tilt": "upright", "gaze": "ahead", "emotion": "neutral", "mouth": "closed", "eyes": "open"},
}


def judge(faces: list[Face], pictures: list[Image.Image]) -> dict[str, str]:
    """All measures of some faces."""
    sights, count = Outsiders()(pictures), len(faces)
    genders = [None if face.attributes["age"] == "child" else face.attributes["gender"] for face in faces]
    years, guessed = np.array([face.years for face in faces]), np.array([sight.years for sight in sights])
    grown = np.array([gender is not None for gender in genders])
    statistics = agreement(sights, genders, years)
    for gender in ("man", "woman"):
        of_gender = [g if g == gender else None for g in genders]
        statistics[f"... of a {gender}"] = agreement(sights, of_gender, years)["gender agrees"]
    statistics["age correlation (adults)"] = correlation(np.where(grown, guessed, np.nan), years)
    out = {name: interval(with_interval(statistic, count)) for name, statistic in statistics.items()}
    for age in RENDERED_ATTRIBUTES["age"]:
        chosen = [k for k, face in enumerate(faces) if face.attributes["age"] == age]
        if chosen:
            out[f"mean guess for {age} (mean truth)"] = f"{guessed[chosen].mean():.0f} ({years[chosen].mean():.0f})"
    return out


def plain(face: Face) -> Face:
    """The same person looking ahead, in even light, without accessories."""
    for name, value in PLAIN.items():
        face = face.with_attribute(name, value)
    return face


def rules_against_counterfactuals(count: int, renderer: Renderer) -> str:
    """Of the attributes that the rules call visible, how many are; and of those that are, how many they name."""
    tallies = defaultdict(lambda: [0, 0, 0])
    for number in range(count):
        face = face_of(number * PICTURES_PER_PERSON, "test")
        said = seen_in(face, renderer.render_seen(face)[1], renderer.size)
        seen = visible_attributes(face, renderer)
        for name in RENDERED_ATTRIBUTES:
            tallies[name][0] += said[name] and seen[name]
            tallies[name][1] += said[name]
            tallies[name][2] += seen[name]
    both, said, seen = np.sum(list(tallies.values()), axis=0)
    wrong = {name: f"{n[0]}/{n[1]}" for name, n in tallies.items() if n[1] and n[0] < 0.9 * n[1]}
    return (
        f"Of {said} attributes of {count} faces that the rules call visible, {both / said:.3f} are visible by "
        f"counterfactual renders; of {seen} that are, the rules name {both / seen:.3f}. Below 0.9: {wrong or 'none'}."
    )


def main() -> None:
    """The command line; see the text at the top of this file."""
    parser = argparse.ArgumentParser(description="Measure rendered faces by detectors and nets that know photographs.")
    parser.add_argument("--count", type=int, default=200, help="people (default: %(default)s)")
    parser.add_argument("--frontal", action="store_true", help="measure them without pose and accessories too")
    parser.add_argument("--visibility", type=int, default=0, metavar="N", help="faces to compare with counterfactuals")
    parser.add_argument("--into", type=Path, help="document to put the table into, between <!-- measured --> lines")
    parser.add_argument("--sheet", type=Path, help="write the first 48 pictures here")
    options = parser.parse_args()

    renderer = Renderer()
    # of 32 faces of four people in a row, as a data set is made; the first loads libraries and data
    renderer.render(face_of(10**6, "validation"))
    start = time.process_time()
    for index in range(32):
        renderer.render_seen(face_of(index, "test"))
    seconds = (time.process_time() - start) / 32

    faces = [face_of(number * PICTURES_PER_PERSON, "validation") for number in range(options.count)]
    pictures = [renderer.render(face) for face in faces]
    columns = {"as they come": judge(faces, pictures)}
    if options.frontal:
        plain_faces = [plain(face) for face in faces]
        columns["frontal, bare"] = judge(plain_faces, [renderer.render(face) for face in plain_faces])
    rows = [[name, *(column[name] for column in columns.values())] for name in columns["as they come"]]
    text = (
        f"{table(['measure', *columns], rows)}\n\n{options.count} people of the validation split, one picture each; "
        f"{seconds:.2f} CPU seconds a picture of 128 px, all told. {machine()}"
    )
    if options.visibility:
        text += f"\n\n{rules_against_counterfactuals(options.visibility, renderer)}"
    print(text)
    if options.sheet:
        side = pictures[0].width
        sheet = Image.new("RGB", (12 * side, 4 * side))
        for number, picture in enumerate(pictures[:48]):
            sheet.paste(picture, (number % 12 * side, number // 12 * side))
        sheet.save(options.sheet, quality=88)
    if options.into:
        put_section(options.into, "measured", text)


if __name__ == "__main__":
    main()
