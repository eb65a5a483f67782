"""Captions of attributed faces: a writer, and a parser that is its exact inverse.

The writer speaks of visible attributes only and reports exactly what it said, so a caption is a ground truth. The
parser reads the same phrase table (`phrases`), whatever the order of the sentences, and tolerates text written by a
model or a person: unknown words are skipped, and of two statements that contradict each other the first one counts.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .attributes import ATTRIBUTES
from .phrases import COMPOUNDS, FACTS, NOUNS, SILENT_VALUES, SPELLINGS, VAGUE_WRITTEN, WRITTEN


DESCRIBE_PROMPTS: tuple[str, ...] = (
    "Describe this face.",
    "Describe the face in detail.",
    "Describe this person.",
    "What does this person look like?",
    "Write a caption for this picture.",
    "What do you see in this face?",
    "Give a detailed description of the face.",
    "Please describe the person in the picture.",
)
"""Wordings of the request for a caption."""


@dataclass(frozen=True)
class Caption:
    """
    A caption and its meaning.

    Args:
        text (`str`): The caption, in English.
        attributes (`dict[str, str]`): Exactly what the text states: attribute name to value.
    """

    text: str
    attributes: dict[str, str]


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------

_PRONOUNS = {"man": "he", "woman": "she"}
# Words that are right after "looks" but not before a noun ("a neutral woman").
_NEVER_BEFORE_A_NOUN = ("neutral",)
_PICTURE_ONLY = ("lighting", "blurry")
_SAID = WRITTEN | VAGUE_WRITTEN


def salient_attributes(attributes: Mapping[str, str], visible: Mapping[str, bool]) -> dict[str, str]:
    """
    Returns the attributes that a full caption states, in the order of `ATTRIBUTES`.

    An attribute is salient when it is visible and either has no silent value (gender, age, skin, hair colour, eyes,
    emotion, pose, clothes, background, ...) or differs from it (a beard, glasses, a tilted head, dim light, ...).

    Args:
        attributes (`Mapping[str, str]`): Attribute name to value.
        visible (`Mapping[str, bool]`): Attribute name to whether the picture shows it; a missing name is not visible.

    Returns:
        `dict[str, str]`: The salient part of `attributes`.
    """
    salient = {}
    for name in ATTRIBUTES:
        if name not in attributes or not visible.get(name, False):
            continue
        if (name, attributes[name]) in _SAID and SILENT_VALUES.get(name) != attributes[name]:
            salient[name] = attributes[name]
    if salient.get("hair_length") == "bald":
        salient.pop("hair_texture", None)
    return salient


def write_caption(
    attributes: Mapping[str, str], visible: Mapping[str, bool], rng: random.Random, *, coverage: float = 1.0
) -> Caption:
    """
    Writes one caption of a face, in one of several styles, sentence orders and wordings.

    Args:
        attributes (`Mapping[str, str]`): Attribute name to value, as in `ATTRIBUTES` or `VAGUE_VALUES`.
        visible (`Mapping[str, bool]`): Attribute name to whether the picture shows it.
        rng (`random.Random`): The source of all choices: one state gives one caption, on every machine.
        coverage (`float`, *optional*, defaults to 1.0):
            The probability with which each salient attribute is stated; the gender, when visible, always is.

    Returns:
        [`Caption`]: The text and exactly what it states; `parse_caption(text)` gives the same attributes, except that
        it reads the usual precise value for a vague one of `VAGUE_VALUES`.

    Raises:
        `ValueError`: If `coverage` is outside of [0, 1].
    """
    if not 0.0 <= coverage <= 1.0:
        raise ValueError(f"`coverage` is {coverage}, but it is a probability: give a number from 0 to 1.")
    salient = salient_attributes(attributes, visible)
    stated = {name: value for name, value in salient.items() if name == "gender" or rng.random() < coverage}
    text = _Writer(stated, rng).text()
    return Caption(of_child(text) if attributes.get("age") == "child" else text, stated)


_GROWN = re.compile(r"\b(man|woman)\b", re.IGNORECASE)


def of_child(text: str) -> str:
    """A text about a child: men and women are boys and girls in it."""

    def young(found: re.Match) -> str:
        word = "boy" if found[1].lower() == "man" else "girl"
        return word.capitalize() if found[1][0].isupper() else word

    return _GROWN.sub(young, text)


_ALSO_SPELT = (("gray", "grey"), ("mustache", "moustache"), ("blond ", "blonde "), ("makeup", "make-up"))


def respell(text: str, rng: random.Random) -> str:
    """Writes words of a caption as other people do ("grey", "moustache"), half of the time; the meaning stays."""
    for written, also in _ALSO_SPELT:
        if rng.random() < 0.5:
            text = text.replace(written, also)
    return text


def with_article(phrase: str) -> str:
    """Puts "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join_list(items: list[str]) -> str:
    """Joins `["a", "b", "c"]` to "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


class _Writer:
    """Writes one caption. Facts are taken out of `left` as they are said, so none is said twice or forgotten."""

    def __init__(self, stated: dict[str, str], rng: random.Random):
        self.stated = stated
        self.left = dict(stated)
        self.rng = rng
        self.pronoun = _PRONOUNS.get(stated.get("gender", ""), "")
        # The colour of the hair is that of beard and brows too, and a bald head shows it there only.
        self.bald = stated.get("hair_length") == "bald"
        self.colored_beard = stated.get("beard") == "full" and "hair_color" in stated
        self.colored_beard = self.colored_beard and (self.bald or rng.random() < 0.3)

    # -- words -------------------------------------------------------------------------------------------------------

    def take(self, name: str) -> str | None:
        """Takes the fact about `name` and returns one of its wordings; None if it is not (or no longer) to be said."""
        value = self.left.pop(name, None)
        return None if value is None else self.rng.choice(_SAID[name, value].written)

    def role(self, name: str) -> str | None:
        return _SAID[name, self.left[name]].role if name in self.left else None

    def take_role(self, role: str, names: tuple[str, ...]) -> list[str]:
        """Takes those of `names` whose wording has the given role."""
        return [self.take(name) for name in names if self.role(name) == role]

    def noun_phrase(self, noun: str, names: tuple[str, ...], *, count_noun: bool = False) -> list[str]:
        """Takes adjectives and puts them before their noun: at most one phrase."""
        adjectives = [self.take(name) for name in names if self.role(name) in NOUNS[noun][2]]
        if not adjectives:
            return []
        phrase = " ".join([*adjectives, self.rng.choice(NOUNS[noun][0])])
        return [with_article(phrase) if count_noun else phrase]

    # -- parts of the face -------------------------------------------------------------------------------------------

    def skin_part(self) -> list[str]:
        part = self.noun_phrase("skin", ("skin",)) + self.noun_phrase("face", ("face_shape",), count_noun=True)
        names = ("chubby", "double_chin", "cheekbones", "rosy_cheeks", "freckles", "mole", "wrinkles")
        return part + self.take_role("has", names)

    def hair_part(self) -> list[str]:
        names = ("hair_length", "hair_texture", "hair_color")
        if self.bald or self.colored_beard:
            names = ("hair_length", "hair_texture")
        return self.noun_phrase("hair", names) + self.take_role("has", ("bangs", "hairline", "updo"))

    def eyes_part(self) -> list[str]:
        part = self.noun_phrase("eyes", ("eye_size", "eyes", "eye_color"))
        brows = ("brow_thickness", "brow_shape")
        if self.bald and not self.colored_beard:
            brows += ("hair_color",)
        part += self.noun_phrase("brows", brows)
        if self.rng.random() < 0.3:
            part.reverse()
        return part + self.take_role("has", ("eye_bags", "makeup"))

    def mouth_part(self) -> list[str]:
        part = self.noun_phrase("nose", ("nose",), count_noun=True) + self.noun_phrase("lips", ("lips",))
        part += self.take_role("has", ("lipstick", "mouth"))
        if self.colored_beard:
            del self.left["beard"]
            part += [with_article(f"{self.take('hair_color')} beard")]
        return part + self.take_role("has", ("beard", "mustache", "sideburns"))

    def worn_part(self) -> list[str]:
        names = ("headwear", "headphones", "eyewear", "mask", "earrings", "necklace", "neckwear")
        worn = self.take_role("wears", names)
        if "clothes" in self.left:
            garment = self.take("clothes").removeprefix("a ")
            color = self.take("clothes_color")
            worn.append(with_article(f"{color} {garment}" if color else garment))
        elif "clothes_color" in self.left:
            worn.append(f"{self.take('clothes_color')} clothes")
        return worn

    def doing_part(self) -> list[str]:
        return self.take_role("is", ("mouth", "eyes", "tears", "pose", "tilt", "gaze"))

    def face_parts(self) -> list[list[str]]:
        """The four lists of what the person has: in the usual order half of the time, else shuffled."""
        parts = [self.skin_part(), self.hair_part(), self.eyes_part(), self.mouth_part()]
        if self.rng.random() < 0.5:
            self.rng.shuffle(parts)
        return [part for part in parts if part]

    def person(self) -> str:
        """The noun phrase of the person, "young woman", with one more adjective some of the time."""
        words = []
        if self.rng.random() < 0.4:
            if self.left.get("mouth") in ("smiling", "laughing") and self.rng.random() < 0.6:
                words.append(self.left.pop("mouth"))
            elif "emotion" in self.left:
                word = self.rng.choice(WRITTEN["emotion", self.left["emotion"]].written)
                if word not in _NEVER_BEFORE_A_NOUN:
                    words.append(word)
                    del self.left["emotion"]
        if self.left.get("hair_length") == "bald":
            words.append(self.take("hair_length"))
        words.append(self.take("age"))
        words.append(self.take("gender") or "person")
        return " ".join(word for word in words if word)

    # -- sentences ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        style = self.rng.random()
        if len(self.stated) <= 9 and style < 0.65:
            text = self.one_sentence()
        elif style > 0.92:
            text = self.tags()
        else:
            text = self.prose()
        if self.rng.random() < 0.1:
            text = text.lower()
        return text

    def one_sentence(self) -> str:
        """ "A smiling old man with round glasses and a gray beard", with or without the full stop."""
        text = with_article(self.person())
        has = [item for part in self.face_parts() for item in part]
        doing = self.doing_part()
        worn = self.worn_part()
        emotion = self.take("emotion")
        if emotion:
            has.append(f"{with_article(emotion)} expression")
        clothed = worn.pop() if worn and ("clothes" in self.stated or "clothes_color" in self.stated) else None
        if self.rng.random() < 0.5:
            has, worn = has + worn, []
        if has:
            text += f" with {join_list(has)}"
        if worn:
            text += f" wearing {join_list(worn)}"
        if clothed:
            text += f", in {clothed}" if has or worn else f" in {clothed}"
        if doing:
            text += f", {join_list(doing)}"
        text += "".join(f", {item}" for item in self.take_role("picture", _PICTURE_ONLY))
        background = self.noun_phrase("background", ("background",), count_noun=True)
        if background:
            text += f"{self.rng.choice((',', ''))} {self.rng.choice(('against', 'in front of'))} {background[0]}"
        # The spoken style of a request: no capital letter, no full stop.
        return text if self.rng.random() < 0.4 else f"{text[0].upper()}{text[1:]}."

    def tags(self) -> str:
        """ "young woman, fair skin, long blond hair, round glasses": as people list what they want."""
        parts = [[self.person()]]
        rest = [*self.face_parts(), self.doing_part(), self.worn_part(), self.take_role("looks", ("emotion",))]
        rest.append(self.take_role("picture", _PICTURE_ONLY))
        rest.append(self.noun_phrase("background", ("background",)))
        if self.rng.random() < 0.5:
            self.rng.shuffle(rest)
        items = [item.removeprefix("a ").removeprefix("an ") for part in parts + rest for item in part]
        return ", ".join(items)

    def prose(self) -> str:
        subject = self.person()
        parts = self.face_parts()
        first = with_article(subject)
        if parts and self.rng.random() < 0.75:
            first += f" with {join_list(parts.pop(0))}"
        if self.rng.random() < 0.3:
            first = f"This is {first}"
        # Wide lists read badly, so the other parts are cut into one or two sentences.
        cut = 2 if len(parts) >= 3 else len(parts)
        groups = [parts[:cut], parts[cut:]]
        sentences = []
        for group in groups:
            items = [item for part in group for item in part]
            if items:
                sentences.append(self.subject_verb("has") + join_list(items))
        worn = self.worn_part()
        if worn:
            wearing = f"{self.rng.choice(('is wearing', 'wears'))} "
            sentences.append((self.subject_verb("") + wearing) + join_list(worn))
        sentences += self.expression_sentences()
        if self.rng.random() < 0.4:
            self.rng.shuffle(sentences)
        scene = self.scene_sentences()
        everything = [first, *sentences, *scene]
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in everything)

    def subject_verb(self, verb: str) -> str:
        """ "she has ", "the woman has ", or "this person has " when the gender is not stated."""
        if not self.pronoun:
            subject = "this person"
        elif self.rng.random() < 0.85:
            subject = self.pronoun
        else:
            subject = f"the {self.stated['gender']}"
        return f"{subject} {verb} " if verb else f"{subject} "

    def expression_sentences(self) -> list[str]:
        emotion = self.take("emotion")
        doing = self.doing_part()
        sentences = []
        if emotion and self.rng.random() < 0.25:
            sentences.append(f"{self.subject_verb('has')}{with_article(emotion)} expression")
            emotion = None
        if emotion:
            sentences.append(f"{self.subject_verb(self.rng.choice(('looks', 'seems')))}{emotion}")
            if doing:
                sentences[-1] += f" and is {join_list(doing)}"
        elif doing:
            sentences.append(f"{self.subject_verb('is')}{join_list(doing)}")
        return sentences

    def scene_sentences(self) -> list[str]:
        sentences = []
        if "background" in self.left:
            noun = self.rng.choice(NOUNS["background"][0])
            color = self.take("background")
            owner = {"he": "behind him", "she": "behind her"}.get(self.pronoun, "behind")
            choices = (f"the {noun} is {color}", f"{with_article(f'{color} {noun}')} is {owner}")
            sentences.append(choices[0] if self.rng.random() < 0.7 else choices[1])
        picture = self.take_role("picture", _PICTURE_ONLY)
        if picture:
            sentences.append(f"the {self.rng.choice(('picture', 'image'))} is {join_list(picture)}")
        return sentences


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*|[,.;:!?]")
_STOPS = frozenset(".;:!?")
# Left out when phrases are compared; between an adjective and a noun they still part one thing from the next.
_ARTICLES = frozenset(("a", "an", "the", "his", "her", "their", "its", "some"))
# May stand between the adjectives of one noun.
_FILLERS = frozenset((",", "and", "very", "rather", "quite", "slightly", "really", "so"))
_COPULAS = frozenset(("is", "are", "was", "were", "looks", "look", "being"))
_NEGATIONS = frozenset(("no", "without", "not", "isn't", "doesn't", "never", "lacks"))
_AFTER_NEGATION = frozenset(("wearing", "wear", "any", "have", "having", "is", "visible"))


def _phrase_key(phrase: str) -> tuple[str, ...]:
    return tuple(word for word in phrase.split() if word not in _ARTICLES)


_PHRASES: dict[tuple[str, ...], tuple[str, str]] = {}
_ADJECTIVES: dict[str, dict[str, tuple[str, str]]] = {}
_HEADS: dict[str, tuple[str, ...]] = {
    word: roles for written, heard, roles in NOUNS.values() for word in (*written, *heard)
}
_ADJECTIVE_ROLES = frozenset(role for _, _, roles in NOUNS.values() for role in roles)
for _fact in FACTS:
    for _words in (*_fact.written, *_fact.heard):
        _target = _ADJECTIVES.setdefault(_fact.role, {}) if _fact.role in _ADJECTIVE_ROLES else _PHRASES
        _entry = _words if _fact.role in _ADJECTIVE_ROLES else _phrase_key(_words)
        if _target.setdefault(_entry, (_fact.attribute, _fact.value)) != (_fact.attribute, _fact.value):
            raise ValueError(f"The phrase table gives {_words!r} two meanings; every wording must have one.")
_COMPOUNDS = {tuple(words.split()): said for words, said in COMPOUNDS.items()}
_LONGEST = max(len(key) for key in _PHRASES)
_SPELLING = re.compile(r"\b(" + "|".join(sorted(map(re.escape, SPELLINGS), key=len, reverse=True)) + r")\b")
_SUBJECTS = {"he": "man", "his": "man", "him": "man", "she": "woman", "her": "woman"}


def normalize_spelling(text: str) -> str:
    """Lower-cases a text and gives its words the spelling of the phrase table ("grey" to "gray")."""
    return _SPELLING.sub(lambda match: SPELLINGS[match.group(1)], text.lower().replace("\u2019", "'"))


def parse_caption(text: str) -> dict[str, str]:
    """
    Reads which attributes a caption states.

    It is the exact inverse of [`write_caption`] and tolerates other text: case, articles, other spellings ("grey",
    "blonde", "moustache", "spectacles"), vague words with one usual meaning ("glasses", "hat") and unknown words,
    which are skipped. "no", "not" and "without" turn the word that follows into the absent value. Of two statements
    that contradict each other the first one counts.

    Args:
        text (`str`): A caption or a request, in English.

    Returns:
        `dict[str, str]`: Attribute name to value, as in `ATTRIBUTES`; empty if nothing is stated.
    """
    return _Reader(text).attributes()


class _Reader:
    """Reads one text: phrases by the longest match, adjectives by the noun that they belong to."""

    def __init__(self, text: str):
        self.words: list[str] = []
        self.parted: list[bool] = []  # whether an article stood before the word
        self.pronouns: list[str] = []
        parted = True
        for word in _TOKEN.findall(normalize_spelling(text)):
            if word in _SUBJECTS:
                self.pronouns.append(word)
            if word in _ARTICLES:
                parted = True
                continue
            self.words.append(word)
            self.parted.append(parted)
            parted = False
        self.used = [0] * len(self.words)  # the length of the phrase that used the word
        self.found: dict[str, str] = {}

    def attributes(self) -> dict[str, str]:
        position = 0
        while position < len(self.words):
            length = self.read_phrase(position)
            last = position + max(length, 1) - 1
            if self.words[last] in _HEADS:
                roles = _HEADS[self.words[last]]
                self.read_adjectives(range(position - 1, -1, -1), roles, backward=True)
                if last + 1 < len(self.words) and self.words[last + 1] in _COPULAS:
                    self.read_adjectives(range(last + 2, len(self.words)), roles, backward=False)
            position = last + 1
        if "gender" not in self.found and self.pronouns:
            self.found["gender"] = _SUBJECTS[self.pronouns[0]]
        return {name: self.found[name] for name in ATTRIBUTES if name in self.found}

    def read_phrase(self, start: int) -> int:
        """Reads the longest phrase that begins at `start`; returns its length, 0 if there is none."""
        if (said := _COMPOUNDS.get(tuple(self.words[start : start + 2]))) and not any(self.used[start : start + 2]):
            self.found = {**said, **self.found}
            self.used[start : start + 2] = [2, 2]
            return 2
        for length in range(min(_LONGEST, len(self.words) - start), 0, -1):
            meaning = _PHRASES.get(tuple(self.words[start : start + length]))
            if meaning is None or self.used[start]:
                continue
            name, value = meaning
            if self.negated(start):
                value = SILENT_VALUES.get(name)
            if value is not None:
                self.found.setdefault(name, value)
            self.used[start : start + length] = [length] * length
            return length
        return 0

    def negated(self, start: int) -> bool:
        before = start - 1
        while before >= 0 and self.words[before] in _AFTER_NEGATION:
            before -= 1
        return before >= 0 and self.words[before] in _NEGATIONS

    def read_adjectives(self, positions: range, roles: tuple[str, ...], *, backward: bool) -> None:
        """Reads the adjectives of one noun, from the noun outwards, until a word that cannot belong to it."""
        told: set[str] = set()
        for position in positions:
            word = self.words[position]
            if word in _STOPS or (not backward and self.parted[position]):
                return
            # A phrase of one word may stand among adjectives ("a round chubby face").
            if word not in _FILLERS and self.used[position] != 1:
                meaning = next((_ADJECTIVES[role][word] for role in roles if word in _ADJECTIVES[role]), None)
                if meaning is None or meaning[0] in told or self.used[position]:
                    return
                told.add(meaning[0])
                self.used[position] = 2
                self.found.setdefault(*meaning)
            if backward and self.parted[position]:
                return
