"""Words as people type them: short sentences, negations, curt questions, refusals, and what completes a prompt."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ....modeling_unif2ace.layout_unif2ace import COMPLETE_REQUEST
from .captions import Caption, _Writer, join_list, respell, salient_attributes, with_article, write_caption
from .phrases import SILENT_VALUES
from .questions import QUESTION_KINDS, Question, write_questions


@dataclass(frozen=True)
class Mixture:
    """
    How often each kind of words is drawn; all numbers are shares from 0 to 1 but for `most` and `questions`.

    Args:
        short (`float`, *optional*, defaults to 0.35): Of the prompts, those of 1 to `most` attributes.
        part (`float`, *optional*, defaults to 0.2): Those that state 10 to 80 % of what can be seen; the rest is full.
        most (`int`, *optional*, defaults to 5): Most attributes of a short prompt.
        negation (`float`, *optional*, defaults to 0.35): Of the short prompts, those that also say what is absent.
        captions (`float`, *optional*, defaults to 0.35): Of the rows about a picture, those that ask for a caption.
        questions (`tuple[int, int]`, *optional*, defaults to `(8, 11)`): Fewest and most questions of the other rows.
        typed (`float`, *optional*, defaults to 0.3): Of the questions, those that are curt, as in "hair color".
        declined (`float`, *optional*, defaults to 0.1): Of the questions, those that the picture cannot answer.
        unseen (`float`, *optional*, defaults to 0.25): Of the rows without a picture, those that talk about one.
    """

    short: float = 0.35
    part: float = 0.2
    most: int = 5
    negation: float = 0.35
    captions: float = 0.35
    questions: tuple[int, int] = field(default=(8, 11))
    typed: float = 0.3
    declined: float = 0.1
    unseen: float = 0.25

    def __post_init__(self):
        shares = {name: value for name, value in vars(self).items() if name not in ("most", "questions")}
        wrong = next((name for name, value in shares.items() if not 0 <= value <= 1), None)
        if wrong is not None or self.short + self.part > 1:
            raise ValueError(f"the mixture {shares} has a share outside of 0 to 1, or short + part above 1: mend it")


# ---------------------------------------------------------------------------------------------------------------------
# Short sentences
# ---------------------------------------------------------------------------------------------------------------------

# what people speak of; anything else counts 1
_MENTIONED = {"age": 8, "hair_color": 8, "beard": 8, "eyewear": 8, "mouth": 7, "headwear": 7, "hair_length": 6}
_MENTIONED |= {"skin": 5, "emotion": 5, "mustache": 5, "hair_texture": 3, "eye_color": 3, "earrings": 2, "freckles": 2}
_USUAL = ("closed", "neutral", "medium", "frontal")
_BEFORE = ("smiling", "laughing", "happy", "sad", "angry")  # the person's noun
_VAGUE = {"round glasses": "glasses", "square glasses": "glasses", "beanie": "hat", "cap": "hat", "fedora": "hat"}
_VAGUE |= dict.fromkeys(("stud", "hoop", "drop"), "earrings")
_ABSENT = {
    "eyewear": ("glasses",),
    "headwear": ("a hat",),
    "beard": ("a beard",),
    "mustache": ("a mustache",),
    "earrings": ("earrings",),
    "makeup": ("makeup",),
    "lipstick": ("lipstick",),
    "necklace": ("a necklace",),
    "freckles": ("freckles",),
    "wrinkles": ("wrinkles",),
    "bangs": ("bangs",),
    "mask": ("a mask",),
}
_NOUNS = {
    "man": ("man", "man", "man", "guy", "gentleman", "male"),
    "woman": ("woman", "woman", "woman", "lady", "female"),
}
_BEGINNINGS = ("", "", "", "", "a photo of ", "portrait of ", "a picture of ", "draw ", "show me ", "please draw ")


def write_short(
    attributes: Mapping[str, str],
    visible: Mapping[str, bool],
    rng: random.Random,
    most: int = 5,
    negation: float = 0.35,
) -> Caption:
    """
    A request of one to `most` attributes as people type it: a fragment, a list, a clause; "black man, specs, no hat".

    Args:
        attributes (`Mapping[str, str]`): Attribute name to value.
        visible (`Mapping[str, bool]`): Attribute name to whether the picture shows it.
        rng (`random.Random`): The source of all choices.
        most (`int`, *optional*, defaults to 5): Most attributes, those that are absent among them.
        negation (`float`, *optional*, defaults to 0.35): How often something is said to be absent.

    Returns:
        [`Caption`]: The text and what it states: absent things with their silent value, things whose kind is not said
        with their vague one. `parse_caption` reads the same, and the usual precise value for a vague one.
    """
    salient = salient_attributes(attributes, visible)
    count = rng.randint(1, most)
    absent = [name for name in _ABSENT if visible.get(name) and attributes.get(name) == SILENT_VALUES[name]]
    if attributes.get("gender") == "woman":
        absent = [name for name in absent if name not in ("beard", "mustache")]
    absent = rng.sample(absent, min(len(absent), rng.randint(1, 3), count)) if rng.random() < negation else []
    names = [name for name in salient if name != "gender"]
    weights = {name: 1 if salient[name] in _USUAL else _MENTIONED.get(name, 1) for name in names}
    weights = {name: rng.random() ** (1 / weight) for name, weight in weights.items()}
    chosen = sorted(weights, key=weights.get, reverse=True)[: count - len(absent)]
    stated = {name: value for name, value in salient.items() if name in chosen}
    if "gender" in salient and (not stated or rng.random() < 0.85):
        if len(stated) + len(absent) == count > 1 and stated:
            stated.pop(chosen[-1])
        stated = {"gender": salient["gender"], **stated}
    for name, value in stated.items():
        if value in _VAGUE and rng.random() < 0.6:
            stated[name] = _VAGUE[value]
    text = _Typist(stated, rng, child=attributes.get("age") == "child").text(absent)
    return Caption(_respell(text, rng), stated | {name: SILENT_VALUES[name] for name in absent})


def _respell(text: str, rng: random.Random) -> str:
    if rng.random() < 0.4:
        text = re.sub(r"\bglasses\b", rng.choice(("specs", "spectacles", "eyeglasses")), text)
    return respell(text, rng)


class _Typist(_Writer):
    """Writes one short request."""

    def __init__(self, stated: dict[str, str], rng: random.Random, child: bool):
        super().__init__(stated, rng)
        self.child = child

    def person(self) -> str:
        """The person with what people put before it: "smiling old black man", "little girl", "blond"."""
        words, noun = [], "person"
        gender = self.left.pop("gender", None)
        for name in ("mouth", "emotion"):
            if self.left.get(name) in _BEFORE and self.rng.random() < 0.7:
                words.append(self.take(name))
        if self.left.get("hair_length") == "bald":
            words.append(self.take("hair_length"))
        little = self.left.get("age") == "child"
        if little:
            del self.left["age"]
            if gender is None or self.rng.random() < 0.2:
                words.append("" if gender is None else "school-age")
                noun, little = self.rng.choice(("kid", "child")), False
        elif "age" in self.left:
            words.append(self.take("age"))
        color = self.left.get("hair_color")
        alone = color and color != "gray" and not {"hair_length", "hair_texture"} & set(self.left)
        if alone and self.rng.random() < 0.3:
            words.append({"blond": "blond", "red": "ginger"}.get(self.left.pop("hair_color"), f"{color}-haired"))
        black = self.left.get("skin") == "dark" and gender and not little and self.rng.random() < 0.6
        if not black and "skin" in self.left and self.rng.random() < 0.5:
            words.append(f"{self.left.pop('skin')}-skinned")
        if black:
            del self.left["skin"]
        words.append("black" if black else "little" if little else "")  # which belong to the noun
        if gender:
            young = {"man": "boy", "woman": "girl"}[gender]
            noun = young if self.child else self.rng.choice(_NOUNS[gender])
        return " ".join(word for word in (*words, noun) if word)

    def text(self, absent: list[str]) -> str:
        """The request; `absent` are attributes whose absence is said."""
        nobody = not self.stated and self.rng.random() < 0.5
        person = "" if nobody else self.person()
        has = [item for part in self.face_parts() for item in part] + self.worn_part()
        does = (
            self.doing_part()
            + self.take_role("looks", ("emotion",))
            + self.take_role("picture", ("lighting", "blurry"))
        )
        does += self.noun_phrase("background", ("background",), count_noun=True)
        no = [self.without(name) for name in absent]
        if self.rng.random() < 0.5:  # a list
            has = [item.removeprefix("a ").removeprefix("an ") for item in has]
            self.rng.shuffle(has)
            text = ", ".join([item for item in (person, *has, *does, *no) if item])
        else:
            text = with_article(person) if person and self.rng.random() < 0.6 else person
            text += f" {self.rng.choice(('with', 'with', 'who has'))} {join_list(has)}" if has else ""
            text += "".join(f", {item}" for item in (*does, *no))
        text = self.rng.choice(_BEGINNINGS) + text.removeprefix(", ").strip()
        return text[0].upper() + text[1:] if self.rng.random() < 0.2 else text

    def without(self, name: str) -> str:
        """ "no hat", "without glasses", "clean-shaven"."""
        if name == "beard" and self.rng.random() < 0.5:
            return "clean-shaven"
        thing = self.rng.choice(_ABSENT[name])
        return f"no {thing.removeprefix('a ')}" if self.rng.random() < 0.6 else f"without {thing}"


def write_prompt(
    attributes: Mapping[str, str], visible: Mapping[str, bool], rng: random.Random, mixture: Mixture
) -> str:
    """A prompt for a picture: short, partial or full, as `mixture` says."""
    kind = rng.random()
    if kind < mixture.short:
        return write_short(attributes, visible, rng, mixture.most, mixture.negation).text
    coverage = rng.uniform(0.1, 0.8) if kind < mixture.short + mixture.part else 1.0
    return respell(write_caption(attributes, visible, rng, coverage=coverage).text, rng)


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------

UNKNOWN_PERSON = "I cannot tell who this is: a picture shows what a person looks like, not the name."
NOT_ABOUT_THE_PICTURE = "I cannot tell: I can only talk about the face in the picture."
NOT_SHOWN = "The picture does not show that."
ONE_PERSON = "There is only one person in this picture."
NO_PICTURE = "I see no picture: please give me one."
DECLINED: dict[str, tuple[str, ...]] = {
    UNKNOWN_PERSON: (
        "Who is this?",
        "What is the name of this person?",
        "Do you know this person?",
        "Is this somebody famous?",
        "What is his name?",
        "What is her name?",
        "Which actor is this?",
    ),
    NOT_ABOUT_THE_PICTURE: (
        "What is the capital of France?",
        "What is the weather like tomorrow?",
        "Who won the election?",
        "What is two plus two?",
        "Write a poem.",
        "Where was this picture taken?",
        "What does this person do for a living?",
        "Is this person honest?",
        "Where does this person come from?",
        "What is this person's religion?",
        "How much does this person earn?",
        "Tell me a joke.",
    ),
    ONE_PERSON: (
        "Who is the other person?",
        "What is the person on the left wearing?",
        "Which of the two is older?",
        "Who is taller?",
        "What do the two people look like?",
        "Are they brothers?",
        "What is the second person doing?",
    ),
}
"""Answer -> questions that get it, since the picture cannot tell."""

_CURT = {
    "gender": "man or woman?",
    "age": "how old?",
    "skin": "skin tone?",
    "face_shape": "face shape?",
    "hair_color": "hair color?",
    "hair_length": "hair length?",
    "eye_color": "eye color?",
    "clothes": "clothes?",
    "clothes_color": "color of clothes?",
    "background": "background color?",
    "emotion": "emotion?",
    "nose": "nose?",
    "beard": "what beard?",
    "eyewear": "what glasses?",
    "headwear": "what hat?",
}
_HIDDEN_ASKED = {
    "eye_color": "What colour are the eyes?",
    "gaze": "Where does this person look?",
    "hair_color": "What colour is the hair?",
    "hair_length": "How long is the hair?",
    "mouth": "What is the mouth like?",
    "lips": "Are the lips thin or full?",
    "nose": "What is the nose like?",
    "beard": "Is there any beard?",
}


def ask(
    attributes: Mapping[str, str],
    visible: Mapping[str, bool],
    rng: random.Random,
    count: int,
    mixture: Mixture,
    kinds=QUESTION_KINDS,
) -> list[Question]:
    """`count` questions about a picture, some curt, some that it cannot answer; as [`write_questions`] otherwise."""
    questions = write_questions(attributes, visible, rng, count, kinds)
    for place, question in enumerate(questions):
        if rng.random() < mixture.declined:
            questions[place] = decline(attributes, visible, rng)
        elif rng.random() < mixture.typed:
            questions[place] = Question(question.kind, question.attribute, _curt(question, rng), question.answer)
    return questions


def _curt(question: Question, rng: random.Random) -> str:
    text = question.question
    if question.kind == "attribute" and question.attribute in _CURT and rng.random() < 0.6:
        text = _CURT[question.attribute]
    text = text.lower().replace("colour", "color")
    return text.removesuffix("?") if rng.random() < 0.5 else text


def decline(attributes: Mapping[str, str], visible: Mapping[str, bool], rng: random.Random) -> Question:
    """A question that the picture cannot answer, with an answer that says so."""
    hidden = [name for name in _HIDDEN_ASKED if name in attributes and not visible.get(name, False)]
    if hidden and rng.random() < 0.4:
        name = rng.choice(hidden)
        return Question("declined", name, _HIDDEN_ASKED[name], NOT_SHOWN)
    answer = rng.choice(list(DECLINED))
    return Question("declined", "", rng.choice(DECLINED[answer]), answer)


def talk_without_picture(
    attributes: Mapping[str, str], visible: Mapping[str, bool], rng: random.Random, mixture: Mixture
) -> list[tuple[str, str]]:
    """
    A conversation without a picture: a short sentence that is completed to a full description, or a question about a
    picture that nobody gave.

    The description is that of a face of which the short sentence is true, so it contradicts neither what was said nor
    what was said to be absent.
    """
    if rng.random() < mixture.unseen:
        question = rng.choice(
            [q.question for q in write_questions(attributes, visible, rng, 3)] or ["Describe this face."]
        )
        return [(rng.choice((question, "Describe this face.", "Who is this?")), NO_PICTURE)]
    short = write_short(attributes, visible, rng, mixture.most, mixture.negation).text
    return [(COMPLETE_REQUEST.format(prompt=short), write_caption(attributes, visible, rng).text)]


__all__ = [
    "DECLINED",
    "Mixture",
    "NO_PICTURE",
    "ask",
    "decline",
    "talk_without_picture",
    "write_prompt",
    "write_short",
]
