"""Faces in motion: emotion, mouth, eyes and gaze as weights of the 52 facial actions."""

from collections.abc import Mapping

import numpy as np

from .data import target


def _pair(name: str, weight: float) -> dict[str, float]:
    return {f"{name}Left": weight, f"{name}Right": weight}


EMOTIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happy": {**_pair("cheekSquint", 0.8), **_pair("eyeSquint", 0.25), "browInnerUp": 0.1},
    "sad": {"browInnerUp": 1.3, **_pair("mouthFrown", 1.25), "mouthShrugLower": 0.6, **_pair("eyeSquint", 0.25)},
    "angry": {
        **_pair("browDown", 1.45),
        **_pair("noseSneer", 0.55),
        **_pair("mouthFrown", 0.6),
        **_pair("mouthPress", 0.5),
        **_pair("eyeSquint", 0.35),
    },
    "afraid": {
        "browInnerUp": 1.3,
        **_pair("browOuterUp", 0.35),
        **_pair("eyeWide", 1.1),
        **_pair("mouthStretch", 1.1),
        **_pair("mouthLowerDown", 0.4),
    },
    "surprised": {"browInnerUp": 1.15, **_pair("browOuterUp", 1.25), **_pair("eyeWide", 1.2)},
    "contemptuous": {
        "mouthSmileLeft": 0.9,
        "mouthDimpleLeft": 0.3,
        "cheekSquintLeft": 0.5,
        "browOuterUpRight": 0.9,
        "browDownLeft": 0.7,
        **_pair("eyeSquint", 0.35),
    },
    "disgusted": {
        **_pair("noseSneer", 1.3),
        **_pair("browDown", 0.9),
        **_pair("mouthUpperUp", 0.8),
        **_pair("cheekSquint", 0.7),
        **_pair("eyeSquint", 0.6),
        **_pair("mouthFrown", 0.6),
    },
}
"""Emotion -> facial actions; the open mouth of an emotion comes from `MOUTHS`."""

MOUTHS: dict[str, dict[str, float]] = {
    "closed": {},
    "smiling": {**_pair("mouthSmile", 1.2), **_pair("mouthUpperUp", 0.2), **_pair("mouthLowerDown", 0.1)},
    "laughing": {**_pair("mouthSmile", 1.0), "jawOpen": 0.36, **_pair("mouthUpperUp", 0.5), **_pair("eyeSquint", 0.3)},
    "slightly open": {"jawOpen": 0.2, **_pair("mouthLowerDown", 0.25)},
    "wide open": {"jawOpen": 0.72},
    "kissing": {"mouthPucker": 1.15, "mouthFunnel": 0.15},
    "tongue out": {"jawOpen": 0.34, "tongueOut": 1.0},
}
EYES: dict[str, dict[str, float]] = {
    "open": {},
    "closed": _pair("eyeBlink", 1.0),
    "winking": {"eyeBlinkLeft": 1.0, "cheekSquintLeft": 0.7, "mouthSmileLeft": 0.25},
    "squinting": {**_pair("eyeSquint", 1.0), **_pair("eyeBlink", 0.32), **_pair("cheekSquint", 0.4)},
}


def facial_actions(attributes: Mapping[str, str], strength: float = 1.0) -> dict[str, float]:
    """
    Weights of facial actions for `emotion`, `mouth` and `eyes`.

    Args:
        attributes (`Mapping[str, str]`): The three attributes.
        strength (`float`, *optional*, defaults to 1.0): Of the emotion, about 0.8 to 1.1.
    """
    actions: dict[str, float] = {}
    mouth = attributes["mouth"]
    for table, value, factor in (
        (EMOTIONS, attributes["emotion"], strength),
        (MOUTHS, mouth, 1.0),
        (EYES, attributes["eyes"], 1.0),
    ):
        for name, weight in table[value].items():
            actions[name] = actions.get(name, 0.0) + weight * factor
    if mouth in ("slightly open", "wide open", "tongue out", "kissing"):
        # a pressed mouth does not open
        for name in ("mouthPressLeft", "mouthPressRight", "mouthShrugLower"):
            actions.pop(name, None)
        for name in ("mouthFrownLeft", "mouthFrownRight"):
            if name in actions and mouth != "slightly open":
                actions[name] *= 0.5
    if attributes["eyes"] == "closed" or attributes["eyes"] == "winking":
        sides = ("Left", "Right") if attributes["eyes"] == "closed" else ("Left",)
        for side in sides:
            for name in ("eyeWide", "eyeSquint"):
                actions.pop(name + side, None)
    return actions


def gaze_actions(right: float, up: float) -> dict[str, float]:
    """The lids' part in a look of `right` (towards the person's left, positive) and `up`, in degrees from ahead."""
    side, rise = right / 35, up / 30
    return {
        "eyeLookOutLeft": max(0.0, side),
        "eyeLookInRight": max(0.0, side),
        "eyeLookInLeft": max(0.0, -side),
        "eyeLookOutRight": max(0.0, -side),
        **_pair("eyeLookUp", max(0.0, rise)),
        **_pair("eyeLookDown", max(0.0, -rise)),
    }


def expressive_head(neutral: np.ndarray, actions: Mapping[str, float]) -> np.ndarray:
    """The vertices of a neutral head after facial actions."""
    vertices = neutral.copy()
    for name, weight in actions.items():
        if abs(weight) > 1e-3:
            index, moves = target(f"action:{name}")
            vertices[index] += weight * moves
    return vertices
