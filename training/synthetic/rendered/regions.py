"""Where hair grows: regions of the base mesh in face space, for roots and for the skin's colour alike."""

import numpy as np


SCALP_CENTRE = np.array([0.0, 0.24, -1.19])
_LINE_AZIMUTHS = (0, 25, 45, 62, 75, 95, 115, 140, 180)
_LINE = (32, 31, 28, 15, 0, 4, -14, -30, -34)
_RECEDING = (14, 22, 20, 6, 0, 0, 0, 0, 0)


def scalp_region(points: np.ndarray, receding: bool = False, soft: float = 6.0) -> np.ndarray:
    """
    How much each point belongs to the hair's ground, 0 to 1.

    Args:
        points (`np.ndarray` (..., 3)): Points of the base mesh.
        receding (`bool`, *optional*, defaults to `False`): Whether the hairline lies further back.
        soft (`float`, *optional*, defaults to 6.0): Width of its edge, in degrees around the head.
    """
    r = points - SCALP_CENTRE
    azimuth = np.degrees(np.arctan2(np.abs(r[..., 0]), r[..., 2]))
    elevation = np.degrees(np.arctan2(r[..., 1], np.hypot(r[..., 0], r[..., 2])))
    line = np.interp(azimuth, _LINE_AZIMUTHS, _LINE)
    if receding:
        line = line + np.interp(azimuth, _LINE_AZIMUTHS, _RECEDING)
    inside = np.clip((elevation - line) / soft + 0.5, 0, 1)
    ears = (np.abs(r[..., 0]) > 1.2) & (r[..., 1] < 0.45)
    return inside * (r[..., 1] > -1.25) * ~ears


def brow_region(points: np.ndarray, thickness: float = 1.0, arch: float = 0.5) -> np.ndarray:
    """How much each point belongs to the brows, 0 to 1; `arch` 0 is straight, 1 is high."""
    x, y = np.abs(points[..., 0]), points[..., 1]
    flat = np.interp(x, (0.13, 0.25, 0.55, 0.80, 0.92), (0.31, 0.33, 0.36, 0.34, 0.30))
    high = np.interp(x, (0.13, 0.25, 0.50, 0.64, 0.80, 0.94), (0.31, 0.35, 0.42, 0.44, 0.38, 0.26))
    half = np.interp(x, (0.12, 0.2, 0.55, 0.92), (0.045, 0.06, 0.05, 0.014)) * thickness
    inside = np.clip((half - np.abs(y - flat * (1 - arch) - high * arch)) / 0.02 + 0.5, 0, 1)
    return inside * np.clip((x - 0.12) / 0.03, 0, 1) * (x < 0.92) * (points[..., 2] > -0.6)


def beard_region(points: np.ndarray, kind: str) -> np.ndarray:
    """Whether points belong to a `"mustache"`, `"goatee"`, `"full"` beard (with mustache), or the `"sideburns"`."""
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    lips = ((x / 0.45) ** 2 + ((y + 1.17) / 0.16) ** 2) < 1
    mustache = (x < 0.48) & (y < -0.90 - 0.10 * x) & (y > -1.10 - 0.25 * x) & ~lips
    if kind == "mustache":
        return mustache
    if kind == "goatee":
        ring = (x > 0.36) & (x < 0.5) & (y < -1.05) & (y > -1.4)
        return ((y < -1.27) & (x < 0.42) & (y > -1.95) & (z > -0.6) | ring) & ~lips
    if kind == "sideburns":
        return (x > 0.92) & (y < 0.35) & (y > -0.75) & (z < -0.35) & (z > -1.15) & (x < 1.28)
    edge = np.interp(x, (0, 0.35, 0.6, 0.85, 1.0, 1.08, 1.2), (-1.28, -1.28, -1.25, -1.12, -0.85, -0.4, 0.0))
    jaw = (y < edge) & (y > -1.95) & (z > -1.15) & (x < 1.28)
    return (jaw | mustache | ((x > 0.36) & (x < 0.55) & (y < -1.0) & (y > -1.4))) & ~lips
