"""Questions about attributed faces, with short answers that can be scored by exact match.

Questions are asked about visible attributes only, and only when one answer is right: of a laughing face nobody is
asked whether it is smiling. The words come from the phrase table of the captions (`phrases`).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .attributes import ATTRIBUTES, VAGUE_VALUES
from .captions import join_list, normalize_spelling, of_child, with_article
from .phrases import NOUNS, SILENT_VALUES, VAGUE_WRITTEN, WRITTEN, Fact


QUESTION_KINDS: tuple[str, ...] = (
    "attribute",
    "yes_no",
    "count",
    "comparison",
    "reasoning",
    "action",
    "position",
    "absent",
)
"""The kinds of questions."""

OPEN_QUESTION = "open"
"""The kind of a question that somebody else wrote, whose answer is free text."""

TABLE_QUESTION_KINDS: tuple[str, ...] = ("attribute", "yes_no", "action", "position", "absent")
"""
The kinds that a label table of photographs can answer: the reasons for an emotion and the lightness of colours are
those of the painter, and the number of accessories is known only where every accessory is labelled.
"""

ACCESSORIES: tuple[str, ...] = (
    "eyewear",
    "earrings",
    "headwear",
    "headphones",
    "mask",
    "necklace",
    "neckwear",
)
"""What counts as an accessory; a pair of earrings is one."""


@dataclass(frozen=True)
class Question:
    """
    A question about one face.

    Args:
        kind (`str`): One of `QUESTION_KINDS`.
        attribute (`str`): The attribute asked about; `"accessories"` for a count.
        question (`str`): The question, in English.
        answer (`str`): The right answer: one to six words, or a sentence of visible signs for `"reasoning"`.
    """

    kind: str
    attribute: str
    question: str
    answer: str


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

# {he}, {his}: pronouns, or "this person" when the gender cannot be seen.
_ATTRIBUTE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "gender": ("Is this a man or a woman?", "What is the gender of this person?"),
    "age": ("How old does {he} look?", "What is {his} age group?"),
    "skin": ("What is {his} skin tone?", "What tone is {his} skin?"),
    "face_shape": ("What shape is {his} face?", "What is the shape of the face?"),
    "hair_color": ("What colour is {his} hair?", "Which hair colour does {he} have?"),
    "hair_length": ("How long is {his} hair?", "What is the length of {his} hair?"),
    "hair_texture": ("Is {his} hair straight, wavy or curly?", "What texture is {his} hair?"),
    "updo": ("How is {his} hair tied up?",),
    "brow_shape": ("What shape are {his} eyebrows?", "Are {his} eyebrows straight or arched?"),
    "brow_thickness": ("Are {his} eyebrows thin or bushy?", "How thick are {his} eyebrows?"),
    "eye_color": ("What colour are {his} eyes?", "Which eye colour does {he} have?"),
    "eye_size": ("How big are {his} eyes?", "Are {his} eyes narrow, normal or big?"),
    "nose": ("What is {his} nose like?", "Is {his} nose small, big or pointy?"),
    "lips": ("Are {his} lips thin or full?", "What are {his} lips like?"),
    "lipstick": ("What colour is {his} lipstick?",),
    "beard": ("What kind of beard does {he} have?",),
    "eyewear": ("What does {he} wear over the eyes?", "What kind of eyewear does {he} wear?"),
    "earrings": ("What kind of earrings does {he} wear?",),
    "headwear": ("What kind of headwear does {he} wear?", "What does {he} wear on the head?"),
    "necklace": ("What kind of necklace does {he} wear?",),
    "neckwear": ("What does {he} wear around the collar?",),
    "clothes": ("What clothes does {he} wear?", "What is {he} wearing on the body?"),
    "clothes_color": ("What colour are {his} clothes?", "Which colour do the clothes have?"),
    "background": ("What colour is the background?", "Which colour is behind {him}?"),
    "emotion": ("How does {he} feel?", "What emotion does {his} face show?"),
    "mouth": ("What is {his} mouth like?", "What is the state of {his} mouth?"),
    "lighting": ("How is the picture lit?",),
}

# Values whose name is not an answer in itself.
_ANSWERS = {
    ("hair_length", "buzz"): "buzz cut",
    ("beard", "full"): "full beard",
    ("lighting", "even"): "evenly",
    ("lighting", "left"): "from the left",
    ("lighting", "right"): "from the right",
    ("lighting", "dim"): "dimly",
}

# (attribute, true value, asked value): neither "yes" nor "no" would be clearly right.
_UNCLEAR = frozenset(
    (
        ("mouth", "laughing", "smiling"),
        ("mouth", "laughing", "wide open"),
        ("mouth", "laughing", "slightly open"),
        ("mouth", "smiling", "closed"),
        ("mouth", "kissing", "closed"),
        ("mouth", "tongue out", "slightly open"),
        ("mouth", "tongue out", "wide open"),
        ("mouth", "wide open", "slightly open"),
        ("mouth", "slightly open", "wide open"),
        ("clothes", "suit", "collared shirt"),
        ("hair_length", "buzz", "short"),
        ("eyewear", "sunglasses", "square glasses"),
        ("eyewear", "sunglasses", "round glasses"),
        ("beard", "full", "goatee"),
        ("age", "child", "young"),
        ("skin", "brown", "dark"),
        ("skin", "pale", "fair"),
    )
)

# Lightness ranks of painted colours; colours less than two ranks apart are not compared.
_LIGHTNESS: dict[str, dict[str, int]] = {
    "skin": {"pale": 6, "fair": 5, "tan": 4, "brown": 3, "dark": 1},
    "hair_color": {"black": 0, "brown": 1, "red": 2, "gray": 4, "blond": 4},
    "clothes_color": {"white": 6, "black": 0, "red": 2, "blue": 2, "green": 2, "yellow": 4, "purple": 2},
    "background": {"white": 6, "gray": 3, "blue": 4, "green": 4, "pink": 5, "beige": 5},
}
_COMPARED = {"skin": "skin", "hair_color": "hair", "clothes_color": "clothes", "background": "background"}

# Emotion -> (the attribute that must be visible, the sign of the emotion as the painter draws it).
_SIGNS: dict[str, tuple[tuple[str, str], ...]] = {
    "happy": (("mouth", "the mouth corners point up"),),
    "sad": (("brow_shape", "the inner brows are raised"), ("mouth", "the mouth corners point down")),
    "angry": (("brow_shape", "the inner brows are lowered"), ("mouth", "the mouth corners point down")),
    "afraid": (("brow_shape", "the inner brows are raised"), ("eye_size", "the eyes are wide")),
    "surprised": (("brow_shape", "both brows are raised"), ("eye_size", "the eyes are wide")),
    "contemptuous": (("brow_shape", "one brow is raised"), ("mouth", "one mouth corner is raised")),
    "disgusted": (("nose", "the nose is wrinkled"), ("mouth", "the mouth corners point down")),
}
_OPEN_MOUTH_SIGNS = {
    "wide open": "the mouth is wide open",
    "slightly open": "the mouth is slightly open",
    "tongue out": "the tongue is out",
}
_TEARS_SIGN = "there are tears"
_ALL_SIGNS = tuple(
    dict.fromkeys(
        [sign for signs in _SIGNS.values() for _, sign in signs] + [*_OPEN_MOUTH_SIGNS.values(), _TEARS_SIGN]
    )
)

_MOUTH_ACTIONS = {
    "smiling": "smiling",
    "laughing": "laughing",
    "kissing": "kissing",
    "tongue out": "sticking out the tongue",
}
_EYE_ACTIONS = {"winking": "winking", "squinting": "squinting", "closed": "closing the eyes"}

_POSITION_QUESTIONS: dict[str, tuple[str, ...]] = {
    "gaze": ("Where is {he} looking?", "Which way is {he} looking?"),
    "pose": ("Which way is {his} head turned?", "Which way is {he} facing?"),
    "tilt": ("Which way is {his} head tilted?", "To which side is {his} head tilted?"),
    "lighting": ("From which side does the light come?", "Where does the light come from?"),
}
_POSITION_ANSWERS: dict[str, dict[str, str]] = {
    "gaze": {"ahead": "straight ahead", "left": "left", "right": "right", "up": "up", "down": "down"},
    "pose": {"frontal": "to the front", "turned left": "left", "turned right": "right"},
    "tilt": {"upright": "not tilted", "tilted left": "left", "tilted right": "right"},
    "lighting": {"left": "left", "right": "right"},
}

# Attribute -> (questions that are answered by "nothing" or the thing, questions that are answered by yes or no).
_ABSENT_QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "headwear": (("What is on {his} head?", "What does {he} have on the head?"), ("Is there a hat or headband?",)),
    "eyewear": (("What is in front of {his} eyes?",), ("Are there any glasses?", "Does {he} wear any glasses?")),
    "earrings": (("What is on {his} ears?", "What hangs from {his} ears?"), ("Are there any earrings?",)),
    "necklace": ((), ("Is there a necklace?", "Does {he} wear any necklace?")),
    "neckwear": ((), ("Is there a tie of any kind?",)),
    "mask": (("What covers {his} mouth?",), ("Is there a mask?",)),
    "beard": (("What grows on {his} chin?",), ("Is there any beard?",)),
    "lipstick": (("What is on {his} lips?",), ("Is there any lipstick?",)),
    "headphones": ((), ("Are there any headphones?",)),
    "tears": ((), ("Are there any tears?",)),
}
_THINGS = {("mask", "yes"): "face mask", ("headphones", "yes"): "headphones"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
_KIND_WEIGHTS = {kind: 3 if kind == "attribute" else 2 if kind == "yes_no" else 1 for kind in QUESTION_KINDS}
# A thing that is absent in most faces would else be asked about in nearly every "no" question.
_ABSENT_WEIGHT = 0.15


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def write_questions(
    attributes: Mapping[str, str],
    visible: Mapping[str, bool],
    rng: random.Random,
    count: int,
    kinds: Sequence[str] = QUESTION_KINDS,
    excluded: Mapping[str, Sequence[str]] | None = None,
) -> list[Question]:
    """
    Writes questions about a face, of varied kinds, with their right answers.

    Args:
        attributes (`Mapping[str, str]`): Attribute name to value, as in `ATTRIBUTES` or `VAGUE_VALUES`.
        visible (`Mapping[str, bool]`): Attribute name to whether the picture shows it.
        rng (`random.Random`): The source of all choices: one state gives one list, on every machine.
        count (`int`): How many questions to write; fewer come back when too little is visible for so many.
        kinds (`Sequence[str]`, *optional*, defaults to `QUESTION_KINDS`): The kinds to choose from.
        excluded (`Mapping[str, Sequence[str]]`, *optional*):
            Values that attributes are known not to have; questions about them are answered by "no".

    Returns:
        `list[Question]`: At most `count` questions, no two with the same wording.

    Raises:
        `ValueError`: If `count` is negative.
    """
    if count < 0:
        raise ValueError(f"`count` is {count}, but a number of questions cannot be negative: give 0 or more.")
    child = attributes.get("age") == "child"
    if child:  # of whom "Is this a man or a woman?" has no right answer
        visible = {**visible, "gender": False}
    asker = _Asker(attributes, visible, rng, excluded or {})
    kinds = list(kinds)
    weights = [_KIND_WEIGHTS[kind] for kind in kinds]
    questions: dict[str, Question] = {}
    for _ in range(20 * count):
        if len(questions) == count:
            break
        question = asker.ask(rng.choices(kinds, weights)[0])
        if question is not None:
            questions.setdefault(question.question, question)
    if child:
        return [replace(q, question=of_child(q.question), answer=of_child(q.answer)) for q in questions.values()]
    return list(questions.values())


class _Asker:
    """Asks about one face. Every kind is one method, which returns None when nothing of the kind can be asked."""

    def __init__(
        self,
        attributes: Mapping[str, str],
        visible: Mapping[str, bool],
        rng: random.Random,
        excluded: Mapping[str, Sequence[str]],
    ):
        self.all = attributes
        self.excluded = excluded
        self.seen = {name: attributes[name] for name in ATTRIBUTES if name in attributes and visible.get(name, False)}
        self.rng = rng
        forms = {"man": ("he", "his", "him"), "woman": ("she", "her", "her")}
        unknown = ("this person", "this person's", "this person")
        self.forms = dict(zip(("he", "his", "him"), forms.get(self.seen.get("gender", ""), unknown), strict=True))
        self.methods: dict[str, Callable[[], Question | None]] = {
            "attribute": self.attribute,
            "yes_no": self.yes_no,
            "count": self.count,
            "comparison": self.comparison,
            "reasoning": self.reasoning,
            "action": self.action,
            "position": self.position,
            "absent": self.absent,
        }

    def ask(self, kind: str) -> Question | None:
        return self.methods[kind]()

    def make(self, kind: str, attribute: str, wordings: tuple[str, ...], answer: str) -> Question:
        return Question(kind, attribute, self.rng.choice(wordings).format(**self.forms), answer)

    def usual(self, name: str) -> bool:
        return SILENT_VALUES.get(name) == self.seen[name]

    def vague(self, name: str) -> bool:
        return self.seen[name] in VAGUE_VALUES.get(name, ())

    def attribute(self) -> Question | None:
        names = [name for name in _ATTRIBUTE_QUESTIONS if name in self.seen]
        # What is absent is asked about by "yes_no" and "absent"; a bald head has no hair to describe.
        names = [name for name in names if not self.usual(name) or name == "lighting"]
        # Of a vague value the kind is unknown; "glasses" and "hat" are answers all the same.
        names = [name for name in names if not self.vague(name) or name in ("eyewear", "headwear")]
        if self.all.get("hair_length") == "bald":
            names = [name for name in names if name not in ("hair_color", "hair_texture", "updo")]
        if not names:
            return None
        name = self.rng.choice(names)
        value = self.seen[name]
        return self.make("attribute", name, _ATTRIBUTE_QUESTIONS[name], _ANSWERS.get((name, value), value))

    def yes_no(self) -> Question | None:
        answer = self.rng.choice(("yes", "no"))
        facts: list[Fact] = []
        weights: list[float] = []
        for name, true in self.seen.items():
            if self.vague(name):
                if answer == "yes":
                    facts.append(VAGUE_WRITTEN[name, true])
                    weights.append(1.0)
                continue
            for value in ATTRIBUTES[name]:
                fact = WRITTEN.get((name, value))
                if fact is None or (value == true) != (answer == "yes") or (name, true, value) in _UNCLEAR:
                    continue
                if self.all.get("hair_length") == "bald" and name in ("hair_color", "hair_texture"):
                    continue
                facts.append(fact)
                # All values of one attribute together count as one statement.
                alternatives = 1 if answer == "yes" else len(ATTRIBUTES[name]) - 1
                absent = answer == "no" and self.usual(name)
                weights.append((_ABSENT_WEIGHT if absent else 1.0) / alternatives)
        if answer == "no":
            ruled_out = [
                fact
                for name, values in self.excluded.items()
                for value in values
                if (fact := WRITTEN.get((name, value)) or VAGUE_WRITTEN.get((name, value)))
            ]
            facts += ruled_out
            weights += [1.0 / len(self.excluded[fact.attribute]) for fact in ruled_out]
        if not facts:
            return None
        fact = self.rng.choices(facts, weights)[0]
        return self.make("yes_no", fact.attribute, (self.statement_question(fact),), answer)

    def statement_question(self, fact: Fact) -> str:
        """The statement of a row of the phrase table as a question: "Does {he} have freckles?"."""
        words = self.rng.choice(fact.written)
        if fact.role == "person":
            return f"Is this {with_article(words)}?"
        if fact.role in ("adjective", "is"):
            return f"Is {{he}} {words}?"
        if fact.role == "has":
            return self.rng.choice((f"Does {{he}} have {words}?", f"Has {{he}} got {words}?"))
        if fact.role in ("wears", "garment"):
            return self.rng.choice((f"Does {{he}} wear {words}?", f"Is {{he}} wearing {words}?"))
        if fact.role == "looks":
            return f"Does {{he}} look {words}?"
        if fact.role == "picture":
            return f"Is the picture {words}?"
        noun = next(written for written, _, roles in NOUNS.values() if fact.role in roles)[0]
        verb = "Are" if noun.endswith("s") else "Is"
        owner = "the" if fact.role == "background" else "{his}"
        return f"{verb} {owner} {noun} {words}?"

    def count(self) -> Question | None:
        # An accessory that is worn but hidden would make the number unclear.
        worn = [name for name in ACCESSORIES if self.all.get(name, "none") not in ("none", "no")]
        if any(name not in self.all for name in ACCESSORIES) or any(name not in self.seen for name in worn):
            return None
        wordings = ("How many accessories does {he} wear?", "How many accessories can be seen?")
        return self.make("count", "accessories", wordings, _NUMBERS[len(worn)])

    def comparison(self) -> Question | None:
        names = [name for name in _LIGHTNESS if name in self.seen]
        if self.all.get("hair_length") == "bald":
            names = [name for name in names if name != "hair_color"]
        rank = {name: _LIGHTNESS[name][self.seen[name]] for name in names}
        pairs = [(a, b) for a in names for b in names if rank[a] - rank[b] >= 2]
        if not pairs:
            return None
        lighter, darker = self.rng.choice(pairs)
        nouns = {name: _COMPARED[name] for name in (lighter, darker)}
        first, second = self.rng.choice(((lighter, darker), (darker, lighter)))
        word = self.rng.choice(("lighter", "darker"))
        right = lighter if word == "lighter" else darker
        if self.rng.random() < 0.4:
            wordings = (f"Which is {word}, the {nouns[first]} or the {nouns[second]}?",)
            return self.make("comparison", first, wordings, nouns[right])
        verb = "Are" if nouns[first] == "clothes" else "Is"
        wordings = (f"{verb} the {nouns[first]} {word} than the {nouns[second]}?",)
        return self.make("comparison", first, wordings, "yes" if first == right else "no")

    def reasoning(self) -> Question | None:
        emotion = self.seen.get("emotion")
        if emotion is None or emotion not in _SIGNS:
            return None
        mouth = self.seen.get("mouth")
        signs = []
        for name, sign in _SIGNS[emotion]:
            # An open mouth is the sign itself; its corners are then hard to judge.
            if name in self.seen and not (name == "mouth" and mouth in _OPEN_MOUTH_SIGNS):
                signs.append(sign)
        if mouth in _OPEN_MOUTH_SIGNS:
            signs.append(_OPEN_MOUTH_SIGNS[mouth])
        if self.seen.get("tears") == "yes":
            signs.append(_TEARS_SIGN)
        if not signs:
            return None
        looks = self.rng.choice(WRITTEN["emotion", emotion].written)
        wordings = (f"Why does {{he}} look {looks}?", f"How can one tell that {{he}} is {looks}?")
        return self.make("reasoning", "emotion", wordings, join_list(signs))

    def action(self) -> Question | None:
        mouth = _MOUTH_ACTIONS.get(self.seen.get("mouth", ""))
        eyes = _EYE_ACTIONS.get(self.seen.get("eyes", ""))
        tears = "crying" if self.seen.get("tears") == "yes" else None
        actions = [(name, act) for name, act in (("mouth", mouth), ("eyes", eyes), ("tears", tears)) if act]
        general = ("What is {he} doing?", "What action does {his} face show?")
        if not actions:
            idle = self.seen.get("mouth") == "closed" and self.seen.get("eyes") == "open" and "tears" in self.seen
            return self.make("action", "mouth", general, "nothing") if idle else None
        name, act = self.rng.choice(actions)
        wordings = general if len(actions) == 1 else ()
        if name != "tears":
            wordings += (f"What is {{he}} doing with the {name}?",)
        return self.make("action", name, wordings, act) if wordings else None

    def position(self) -> Question | None:
        names = [
            name for name in _POSITION_QUESTIONS if name in self.seen and self.seen[name] in _POSITION_ANSWERS[name]
        ]
        if not names:
            return None
        # What differs from the usual position is rarer, so it is asked about more often.
        weights = [1 if self.usual(name) or self.seen[name] == "frontal" else 3 for name in names]
        name = self.rng.choices(names, weights)[0]
        return self.make("position", name, _POSITION_QUESTIONS[name], _POSITION_ANSWERS[name][self.seen[name]])

    def absent(self) -> Question | None:
        names = [name for name in _ABSENT_QUESTIONS if name in self.seen]
        missing = [name for name in names if self.usual(name)]
        present = [name for name in names if not self.usual(name)]
        # Things that are there are asked about in the same words, or "nothing" would always be right.
        choice = present if present and (not missing or self.rng.random() < 0.4) else missing
        if not choice:
            return None
        name = self.rng.choice(choice)
        things, existence = _ABSENT_QUESTIONS[name]
        there = name in present
        value = self.seen[name]
        if self.open_question_is_clear(name) and things and self.rng.random() < 0.5:
            return self.make("absent", name, things, self.thing(name, value) if there else "nothing")
        return self.make("absent", name, existence, "yes" if there else "no")

    def open_question_is_clear(self, name: str) -> bool:
        """Headphones are on the head and on the ears too, and a chin may hide behind a mask."""
        if name in ("headwear", "earrings"):
            return self.all.get("headphones", "no") == "no"
        return name in ("mask", "eyewear") or self.all.get("mask", "no") == "no"

    def thing(self, name: str, value: str) -> str:
        if self.vague(name):
            return value
        if name == "earrings":
            return f"{value} earrings"
        if name == "lipstick":
            return f"{value} lipstick"
        return _THINGS.get((name, value)) or _ANSWERS.get((name, value), value)


# ---------------------------------------------------------------------------------------------------------------------
# Scoring
# ---------------------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")
_SKIPPED = frozenset(("a", "an", "the", "his", "her", "their", "this", "it", "is", "are", "he", "she", "to", "from"))
_SAME_ANSWERS = {"yeah": "yes", "yep": "yes", "nope": "no", "0": "zero", "none": "nothing"}
_SAME_ANSWERS |= {str(number): word for number, word in enumerate(_NUMBERS)}


def normalize_answer(text: str) -> str:
    """
    Brings an answer to the form in which answers are compared: lower case, one spelling ("gray"), no punctuation,
    articles, pronouns or copulas, numbers as words.

    Args:
        text (`str`): An answer.

    Returns:
        `str`: The words that count, parted by single spaces; may be empty.
    """
    words = [word for word in _WORD.findall(normalize_spelling(text)) if word not in _SKIPPED]
    return " ".join(_SAME_ANSWERS.get(word, word) for word in words)


_NORMALIZED_SIGNS = tuple(normalize_answer(sign) for sign in _ALL_SIGNS)


def find_signs(text: str) -> frozenset[str]:
    """
    Returns the signs of emotion that an explanation names.

    Args:
        text (`str`): An answer to a `"reasoning"` question.

    Returns:
        `frozenset[str]`: Normalised signs, such as `"inner brows raised"`; empty if the text names none.
    """
    normalized = f" {normalize_answer(text)} "
    return frozenset(sign for sign in _NORMALIZED_SIGNS if f" {sign} " in normalized)


def is_correct(question: Question, answer_text: str) -> bool:
    """
    Scores an answer.

    Args:
        question ([`Question`]): The question with its right answer.
        answer_text (`str`): The answer to score.

    Returns:
        `bool`: For `"reasoning"`, whether the answer names exactly the right signs, in any order; for the other kinds,
        whether the normalised texts are equal.
    """
    if question.kind == "reasoning":
        return find_signs(question.answer) == find_signs(answer_text)
    return normalize_answer(question.answer) == normalize_answer(answer_text)
