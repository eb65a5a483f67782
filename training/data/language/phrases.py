"""The phrase table: which words say which (attribute, value), for writing and for reading.

`captions` writes and parses with these tables and `questions` asks with them, so a wording that is added here is at
once spoken and understood. In every cell the wordings left of the bar are written and read; the wordings right of the
bar are only read: they are what people type, including vague words ("glasses", "hat") that stand for one usual value.

The role of a row says where its words can stand in a sentence:

- `person`: a noun for the person; `adjective`: before that noun or after "is";
- `has`, `wears`, `is`, `looks`: what follows that verb; `picture`: what follows "the picture is";
- `garment`: what follows "wears", and takes the colour of the clothes;
- any other role is an adjective of the nouns that list the role in `NOUNS` ("long" is a fact about hair beside "hair"
  and a fact about the face beside "face").
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """One row of the table: the words for one value of one attribute in one role."""

    attribute: str
    value: str
    role: str
    written: tuple[str, ...]
    heard: tuple[str, ...]


def split_cell(cell: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits `"big, large | huge"` into the written wordings and the wordings that are only understood."""
    written, _, heard = cell.partition("|")
    return tuple(w.strip() for w in written.split(",") if w.strip()), tuple(
        w.strip() for w in heard.split(",") if w.strip()
    )


# fmt: off
_ROWS = (
    ("gender", "man", "person", "man | gentleman, guy, male, boy"),
    ("gender", "woman", "person", "woman | lady, female, girl"),
    ("age", "child", "adjective", "school-age | child, children, kid, schoolboy, schoolgirl"),
    ("age", "young", "adjective", "young | youthful"),
    ("age", "middle-aged", "adjective", "middle-aged | mature"),
    ("age", "elderly", "adjective", "elderly, old | aged, senior"),

    ("skin", "pale", "skin", "pale"),
    ("skin", "fair", "skin", "fair | light"),
    ("skin", "tan", "skin", "tan, tanned | olive"),
    ("skin", "brown", "skin", "brown"),
    ("skin", "dark", "skin", "dark | black"),
    ("skin", "pale", "is", "| pale-skinned"),
    ("skin", "fair", "is", "| fair-skinned, light-skinned"),
    ("skin", "tan", "is", "| tan-skinned"),
    ("skin", "brown", "is", "| brown-skinned"),
    ("skin", "dark", "is", "| dark-skinned"),

    ("face_shape", "oval", "face", "oval"),
    ("face_shape", "round", "face", "round"),
    ("face_shape", "square", "face", "square | angular"),
    ("face_shape", "heart-shaped", "face", "heart-shaped"),
    ("face_shape", "long", "face", "long | oblong"),
    ("chubby", "yes", "has", "chubby cheeks, plump cheeks | chubby"),
    ("double_chin", "yes", "has", "a double chin"),
    ("cheekbones", "high", "has", "high cheekbones, prominent cheekbones | cheekbones"),

    ("hair_color", "black", "hair color", "black"),
    ("hair_color", "brown", "hair color", "brown | brunette, chestnut"),
    ("hair_color", "blond", "hair color", "blond | golden, yellow"),
    ("hair_color", "red", "hair color", "red | ginger, auburn"),
    ("hair_color", "gray", "hair color", "gray | white, silver"),
    ("hair_color", "brown", "is", "| brunette"),
    ("hair_color", "blond", "is", "| blond"),
    ("hair_color", "red", "is", "| redhead, ginger"),
    ("hair_length", "bald", "is", "bald | hairless, bald-headed, no hair"),
    ("hair_length", "buzz", "hair", "buzz-cut, cropped | shaved"),
    ("hair_length", "buzz", "has", "| buzz cut, buzzcut"),
    ("hair_length", "short", "hair", "short"),
    ("hair_length", "medium", "hair", "medium-length, shoulder-length | medium"),
    ("hair_length", "long", "hair", "long"),
    ("hair_texture", "straight", "hair", "straight | sleek"),
    ("hair_texture", "wavy", "hair", "wavy"),
    ("hair_texture", "curly", "hair", "curly | frizzy"),
    ("bangs", "yes", "has", "bangs, a fringe"),
    ("hairline", "receding", "has", "a receding hairline | receding hair"),
    ("updo", "bun", "has", "a bun, a hair bun | hair in a bun"),
    ("updo", "ponytail", "has", "a ponytail | pony tail"),

    ("brow_shape", "straight", "brows", "straight"),
    ("brow_shape", "arched", "brows", "arched | curved"),
    ("brow_thickness", "thin", "brows", "thin"),
    ("brow_thickness", "bushy", "brows", "bushy, thick"),

    ("eye_color", "brown", "eyes", "brown"),
    ("eye_color", "blue", "eyes", "blue"),
    ("eye_color", "green", "eyes", "green"),
    ("eye_color", "gray", "eyes", "gray"),
    ("eye_size", "narrow", "eyes", "narrow | small"),
    ("eye_size", "normal", "eyes", "medium-sized | normal, medium"),
    ("eye_size", "big", "eyes", "big, large | wide, huge"),
    ("eyes", "open", "eyes", "| open"),
    ("eyes", "closed", "eyes", "closed, shut"),
    ("eyes", "closed", "has", "| eyes closed, eyes shut"),
    ("eyes", "winking", "is", "winking | winks, wink"),
    ("eyes", "squinting", "is", "squinting | squints"),
    ("eye_bags", "yes", "has", "bags under the eyes, eye bags"),
    ("wrinkles", "yes", "has", "wrinkles | wrinkled, wrinkly"),

    ("nose", "small", "nose", "small, little | tiny"),
    ("nose", "big", "nose", "big, large | huge"),
    ("nose", "pointy", "nose", "pointy, pointed"),
    ("lips", "thin", "lips", "thin"),
    ("lips", "full", "lips", "full | thick, plump"),
    ("lipstick", "red", "has", "red lipstick | lipstick"),
    ("lipstick", "pink", "has", "pink lipstick"),
    ("lipstick", "purple", "has", "purple lipstick"),
    ("lipstick", "red", "lips", "| red"),
    ("lipstick", "pink", "lips", "| pink"),
    ("lipstick", "purple", "lips", "| purple"),
    ("makeup", "heavy", "has", "heavy makeup, strong makeup | makeup"),
    ("rosy_cheeks", "yes", "has", "rosy cheeks, blushing cheeks | blushing, blush"),
    ("freckles", "yes", "has", "freckles | freckled"),
    ("mole", "yes", "has", "a mole, a beauty mark"),

    ("beard", "stubble", "has", "stubble | stubbly, unshaven"),
    ("beard", "goatee", "has", "a goatee | goatee beard"),
    ("beard", "full", "has", "a full beard, a beard | bearded, beards"),
    ("beard", "none", "has", "| clean-shaven, beardless"),
    ("mustache", "yes", "has", "a mustache"),
    ("sideburns", "yes", "has", "sideburns"),

    ("eyewear", "round glasses", "wears", "round glasses, round spectacles | glasses, round eyeglasses"),
    ("eyewear", "square glasses", "wears", "square glasses, square spectacles | rectangular glasses"),
    ("eyewear", "sunglasses", "wears", "sunglasses, dark glasses"),
    ("earrings", "stud", "wears", "stud earrings, studs"),
    ("earrings", "hoop", "wears", "hoop earrings, hoops | earrings"),
    ("earrings", "drop", "wears", "drop earrings, dangling earrings"),
    ("headwear", "beanie", "wears", "a beanie, a knit cap | knitted cap"),
    ("headwear", "cap", "wears", "a cap, a baseball cap"),
    ("headwear", "fedora", "wears", "a fedora, a brimmed hat | hat"),
    ("headwear", "headband", "wears", "a headband, a hairband | hair band"),
    ("headwear", "headscarf", "wears", "a headscarf, a hijab | head scarf"),
    ("headphones", "yes", "wears", "headphones | headset"),
    ("mask", "yes", "wears", "a face mask, a medical mask | mask"),
    ("necklace", "pearl", "wears", "a pearl necklace, pearls"),
    ("necklace", "gold", "wears", "a gold necklace, a gold chain | necklace, golden necklace"),
    ("neckwear", "necktie", "wears", "a necktie, a tie"),
    ("neckwear", "bow tie", "wears", "a bow tie | bowtie"),
    ("clothes", "t-shirt", "garment", "a t-shirt, a tee | tshirt"),
    ("clothes", "collared shirt", "garment", "a collared shirt, a shirt | dress shirt"),
    ("clothes", "suit", "garment", "a suit | suit jacket"),
    ("clothes", "turtleneck", "garment", "a turtleneck, a roll-neck | turtleneck sweater"),
    ("clothes_color", "white", "clothes", "white"),
    ("clothes_color", "black", "clothes", "black"),
    ("clothes_color", "red", "clothes", "red"),
    ("clothes_color", "blue", "clothes", "blue"),
    ("clothes_color", "green", "clothes", "green"),
    ("clothes_color", "yellow", "clothes", "yellow"),
    ("clothes_color", "purple", "clothes", "purple | violet"),

    ("emotion", "neutral", "looks", "neutral, calm | relaxed, expressionless"),
    ("emotion", "happy", "looks", "happy, cheerful | joyful, glad"),
    ("emotion", "sad", "looks", "sad, unhappy | sorrowful"),
    ("emotion", "angry", "looks", "angry, furious | mad"),
    ("emotion", "afraid", "looks", "scared, frightened | afraid, fearful"),
    ("emotion", "surprised", "looks", "surprised, astonished | amazed, shocked"),
    ("emotion", "contemptuous", "looks", "contemptuous, scornful | contempt"),
    ("emotion", "disgusted", "looks", "disgusted, repulsed | disgust"),
    ("mouth", "closed", "has", "a closed mouth | mouth closed, mouth is closed"),
    ("mouth", "smiling", "is", "smiling | smile, smiles, grin, grinning, smiley"),
    ("mouth", "laughing", "is", "laughing | laughs, laugh"),
    ("mouth", "slightly open", "has", "a slightly open mouth, a half-open mouth | mouth slightly open, "
                                      "mouth is slightly open, lips are parted, parted lips"),
    ("mouth", "wide open", "has", "a wide open mouth, a gaping mouth | mouth wide open, mouth is wide open, "
                                  "open mouth, mouth open, shouting, screaming"),
    ("mouth", "kissing", "is", "kissing, puckering up | puckered lips, kiss, blowing a kiss"),
    ("mouth", "tongue out", "is", "sticking out the tongue, showing the tongue | tongue out, tongue"),

    ("gaze", "ahead", "is", "| looking ahead, looking straight ahead, looking at the camera, looking at the viewer"),
    ("gaze", "left", "is", "looking to the left, glancing left | looking left, looks left, looks to the left"),
    ("gaze", "right", "is", "looking to the right, glancing right | looking right, looks right, looks to the right"),
    ("gaze", "up", "is", "looking up, glancing up | looks up, looking upward"),
    ("gaze", "down", "is", "looking down, glancing down | looks down, looking downward"),
    ("pose", "frontal", "is", "facing the camera, facing forward | seen from the front, frontal"),
    ("pose", "turned left", "is", "turned to the left, facing left | turned left, turning left, "
                                  "turning the head to the left"),
    ("pose", "turned right", "is", "turned to the right, facing right | turned right, turning right, "
                                   "turning the head to the right"),
    ("tilt", "upright", "is", "| upright"),
    ("tilt", "tilted left", "is", "tilting the head to the left, tilted to the left | tilted left, tilting left"),
    ("tilt", "tilted right", "is", "tilting the head to the right, tilted to the right | tilted right, "
                                   "tilting right"),
    ("tears", "yes", "is", "crying, in tears | tears, tear, weeping, cries, tearful"),

    ("background", "white", "background", "white"),
    ("background", "gray", "background", "gray"),
    ("background", "blue", "background", "blue"),
    ("background", "green", "background", "green"),
    ("background", "pink", "background", "pink"),
    ("background", "beige", "background", "beige | cream"),
    ("lighting", "even", "picture", "| evenly lit, even light"),
    ("lighting", "left", "picture", "lit from the left | light from the left, light comes from the left"),
    ("lighting", "right", "picture", "lit from the right | light from the right, light comes from the right"),
    ("lighting", "dim", "picture", "dimly lit, in dim light | dim light, dark lighting, dim"),
    ("blurry", "yes", "picture", "blurry, out of focus | blurred"),
)

# noun -> (its words, the adjective roles that it takes). The colour of beard and brows is the colour of the hair.
_NOUNS = {
    "skin": ("skin | complexion", ("skin",)),
    "face": ("face", ("face",)),
    "hair": ("hair | hairstyle, haircut", ("hair", "hair color")),
    "brows": ("eyebrows, brows | eyebrow, brow", ("brows", "hair color")),
    "facial hair": ("beard | goatee, stubble, mustache, sideburns", ("hair color",)),
    "eyes": ("eyes | eye", ("eyes",)),
    "nose": ("nose", ("nose",)),
    "lips": ("lips | lip", ("lips",)),
    "clothes": ("clothes | t-shirt, tee, tshirt, shirt, suit, jacket, turtleneck, roll-neck, sweater, clothing, "
                "outfit, top", ("clothes",)),
    "background": ("background, backdrop | wall", ("background",)),
}
# fmt: on

FACTS: tuple[Fact, ...] = tuple(Fact(name, value, role, *split_cell(cell)) for name, value, role, cell in _ROWS)
"""All rows, in the order of the table."""

NOUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    noun: (*split_cell(cell), roles) for noun, (cell, roles) in _NOUNS.items()
}
"""Noun -> (written words, heard words, adjective roles)."""

WRITTEN: dict[tuple[str, str], Fact] = {}
"""(attribute, value) -> the row that is written; values without such a row are never spoken of."""
for _fact in FACTS:
    if _fact.written:
        WRITTEN[_fact.attribute, _fact.value] = _fact

COMPOUNDS: dict[str, dict[str, str]] = {
    f"{word} {noun}": {"gender": gender, **said}
    for gender, nouns in (
        ("man", ("man", "guy", "gentleman", "male", "boy")),
        ("woman", ("woman", "lady", "female", "girl")),
    )
    for noun in nouns
    for word, said in (
        ("black", {"skin": "dark"}),
        *((("little", {"age": "child"}),) if noun in ("boy", "girl") else ()),
    )
}
"""Adjectives that mean something before a person only: "black man", "little girl"."""

VAGUE_WRITTEN: dict[tuple[str, str], Fact] = {
    (name, value): Fact(name, value, role, written, ())
    for name, value, role, written in (
        ("eyewear", "glasses", "wears", ("glasses", "eyeglasses")),
        ("headwear", "hat", "wears", ("a hat",)),
        ("earrings", "earrings", "wears", ("earrings",)),
        ("necklace", "necklace", "wears", ("a necklace",)),
        ("lipstick", "lipstick", "has", ("lipstick",)),
        ("beard", "beard", "has", ("a beard", "facial hair")),
    )
}
"""The rows of `VAGUE_VALUES`: written about photographs. When read, "glasses" has its one usual meaning of `FACTS`."""

SILENT_VALUES: dict[str, str] = {
    **dict.fromkeys(("chubby", "double_chin", "bangs", "eye_bags", "wrinkles", "rosy_cheeks", "freckles"), "no"),
    **dict.fromkeys(("mole", "mustache", "sideburns", "headphones", "mask", "tears", "blurry"), "no"),
    **dict.fromkeys(("updo", "lipstick", "makeup", "beard", "eyewear", "earrings", "headwear"), "none"),
    **dict.fromkeys(("necklace", "neckwear"), "none"),
    "cheekbones": "normal",
    "hairline": "normal",
    "eyes": "open",
    "gaze": "ahead",
    "tilt": "upright",
    "lighting": "even",
}
"""The usual or absent value of the attributes that a caption mentions only when they differ from it."""

SPELLINGS: dict[str, str] = {
    "grey": "gray",
    "greyish": "gray",
    "blonde": "blond",
    "moustache": "mustache",
    "colour": "color",
    "colored": "color",
    "coloured": "color",
    "spectacles": "glasses",
    "eyeglasses": "glasses",
    "specs": "glasses",
    "make-up": "makeup",
    "t shirt": "t-shirt",
    "roll neck": "roll-neck",
    "polo neck": "roll-neck",
    "heart shaped": "heart-shaped",
    "middle aged": "middle-aged",
    "medium length": "medium-length",
    "shoulder length": "shoulder-length",
    "medium sized": "medium-sized",
    "buzz cut hair": "buzz-cut hair",
    "clean shaven": "clean-shaven",
    "dark skinned": "dark-skinned",
    "-haired": " hair",
    "-eyed": " eyes",
    "wide-open": "wide open",
}
"""Other spellings -> the spelling of the table (applied to the text before it is read)."""
