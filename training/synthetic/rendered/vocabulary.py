"""What the rendered world can show: the attributes of the common vocabulary, what it leaves out and what it adds."""

from ...data.language.attributes import ATTRIBUTES, WORLD_VALUES
from ...data.language.attributes import HATS as COMMON_HATS


LEFT_OUT: tuple[str, ...] = ("tears",)
"""Attributes that these pictures cannot show, so that nothing is said of them."""

ADDED_VALUES: dict[str, tuple[str, ...]] = {name: WORLD_VALUES[name] for name in ("age", "headwear")}
"""Values that this world has and the painter has not."""

HATS: tuple[str, ...] = (*COMMON_HATS, "headscarf")
"""Headwear that covers the hair."""

RENDERED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    name: values + tuple(value for value in ADDED_VALUES.get(name, ()) if value not in values)
    for name, values in ATTRIBUTES.items()
    if name not in LEFT_OUT
}
"""Attribute -> values, in the order of the common vocabulary."""

PERSON_ATTRIBUTES: tuple[str, ...] = (
    "gender",
    "age",
    "skin",
    "face_shape",
    "chubby",
    "double_chin",
    "cheekbones",
    "brow_shape",
    "brow_thickness",
    "eye_color",
    "eye_size",
    "eye_bags",
    "wrinkles",
    "nose",
    "lips",
    "freckles",
    "mole",
)
"""What stays with a person in all pictures."""

LOOK_ATTRIBUTES: tuple[str, ...] = (
    "hair_color",
    "hair_length",
    "hair_texture",
    "bangs",
    "hairline",
    "updo",
    "lipstick",
    "makeup",
    "rosy_cheeks",
    "beard",
    "mustache",
    "sideburns",
)
"""What stays for some pictures of a person: what a hairdresser can change, and make-up."""

PICTURE_ATTRIBUTES: tuple[str, ...] = tuple(
    name for name in RENDERED_ATTRIBUTES if name not in PERSON_ATTRIBUTES + LOOK_ATTRIBUTES
)
"""What changes from picture to picture."""


def validate_rendered(attributes: dict[str, str]) -> None:
    """
    Check that exactly the attributes of this world are given, with values that it has.

    Raises:
        ValueError: naming the first attribute that is missing, unknown or has another value.
    """
    for name, values in RENDERED_ATTRIBUTES.items():
        if attributes.get(name) not in values:
            raise ValueError(f"Attribute '{name}' is {attributes.get(name)!r}; give one of {', '.join(values)}.")
    for name in attributes:
        if name not in RENDERED_ATTRIBUTES:
            raise ValueError(f"Rendered faces have no attribute {name!r}: use {', '.join(RENDERED_ATTRIBUTES)}.")
