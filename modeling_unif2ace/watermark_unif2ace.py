"""
An invisible watermark in the pixels of generated pictures, and its detector.

A 64 x 64 tile of pseudo-random noise, limited to a band of middle frequencies, is repeated over the picture and added
to its brightness (spread spectrum, Cox et al. 1997): weakly where the picture is flat and the eye would see it, more
where the picture's own detail hides it. The detector weighs the picture's detail against how rough its neighbourhood
is, folds it onto one tile and correlates with the pattern at all 4096 shifts at once, so crops need no search.
Libraries for this need pictures of at least 256 pixels, and most of them weights to download; painted faces have 64.

The key is public: whoever knows this file can remove or forge the mark. It tells honest readers where a picture comes
from, no more. `docs/provenance.md` has the measured rates, `benchmarks/watermark.py` measures them.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from PIL import Image


DEFAULT_KEY = "unif2ace"
TILE = 64
# Cycles per pixel. Lower ones drown in the picture, higher ones in JPEG's quantisation.
BAND = (0.2, 0.4)
# Standard deviation of the added noise in grey levels, at a side of 64 pixels and less: on flat ground, more for each
# grey level by which the detail goes beyond `FLAT`, and at most. Larger pictures get less, down to this share.
STRENGTH, STRENGTH_BY_DETAIL, MAX_STRENGTH = 1.8, 0.35, 3.5
MIN_SHARE = 0.625
# No pixel of flat ground changes by more grey levels than this. Flat: detail of at most one grey level.
MAX_CHANGE, FLAT = 2.0, 1.0
FALSE_ALARM_RATE = 1e-6
# Enlargements that the detector undoes. Exact ones first, that viewers and upscalers make; what costs most comes last.
SCALES = (1.0, 2.0, 4.0, 3.0, 8.0, 1.5, 0.75, 0.5)
# Then those that bring the whole picture back to a side that models draw; then all others, of crops too, so finely
# that the pattern stays in step over the middle of the picture, `SEARCH_SIDE` pixels wide.
MODEL_SIDES = (64, 128, 256, 512, 1024)
SEARCHED = (0.5, 3.0)
SEARCH_STEP, SEARCH_SIDE = 0.012, 128
MIN_SIDE = 32
# The middle of a larger picture is enough, and bounds memory and time.
MAX_SIDE = 2048

_WINDOW = 3
# A place is as flat as it is in the flatter of these windows: the large one keeps the noise off single specks, the
# small one off flat ground beside an edge.
_DETAIL_WINDOWS = (3, 7)
# What the detector counts as noise on flat ground, grey levels.
_DEVIATION_FLOOR = 1.5
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class WatermarkReading:
    """
    What the detector saw.

    Args:
        score (`float`):
            Highest correlation, in standard deviations over all shifts; about 4 without a watermark. The search ends
            where the threshold is reached.
        threshold (`float`): The score from which on the watermark counts as found.
        scale (`float`): The enlargement at which the score was reached.
        mirrored (`bool`): Whether it was reached in the mirror image.
    """

    score: float
    threshold: float
    scale: float = 1.0
    mirrored: bool = False

    @property
    def found(self) -> bool:
        """Whether the picture carries the watermark."""
        return self.score >= self.threshold


def embed_watermark(image: Image.Image, key: str = DEFAULT_KEY) -> Image.Image:
    """
    A copy of a picture that carries the watermark.

    Depends on the picture and the key alone, so equal pictures stay equal. On flat ground no pixel changes by more
    than 2 grey levels. Pictures that version 0.1 marked, as strongly everywhere, are found by the same detector.

    Args:
        image (`PIL.Image.Image`): A picture; other modes than RGB become RGB.
        key (`str`, *optional*, defaults to `"unif2ace"`): What the pattern is made from.

    Returns:
        `PIL.Image.Image`: a picture of mode `"RGB"` with the same `info`.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    # detection adds up over the area, so larger pictures need less
    share = min(1.0, max(MIN_SHARE, math.sqrt(TILE / min(height, width))))
    squares = _detail(pixels @ _LUMA) ** 2
    detail = np.sqrt(np.min([_box_mean(squares, window) for window in _DETAIL_WINDOWS], axis=0).clip(0))
    room = STRENGTH_BY_DETAIL * np.maximum(detail - FLAT, 0)
    noise = np.tile(_pattern(key), (-(-height // TILE), -(-width // TILE)))[:height, :width]
    noise = share * np.minimum(STRENGTH + room, MAX_STRENGTH) * noise
    noise = noise.clip(-MAX_CHANGE - 2 * room, MAX_CHANGE + 2 * room)
    marked = Image.fromarray(np.clip(np.rint(pixels + noise[..., None]), 0, 255).astype(np.uint8))
    marked.info = dict(image.info)
    return marked


def detect_watermark(
    image: Image.Image, key: str = DEFAULT_KEY, false_alarm_rate: float = FALSE_ALARM_RATE
) -> WatermarkReading:
    """
    Look for the watermark: at every shift, mirrored or not, enlarged or not.

    Over the choice of a random key, the correlation at one shift is a weighted sum of random signs, so its tail is
    Gaussian whatever the picture; the threshold divides `false_alarm_rate` by the number of places looked at.

    Args:
        image (`PIL.Image.Image`): A picture of any size and mode.
        key (`str`, *optional*, defaults to `"unif2ace"`): What the pattern was made from.
        false_alarm_rate (`float`, *optional*, defaults to 1e-6):
            Highest share of pictures without the watermark that may be taken for marked, in (0, 1).

    Returns:
        [`WatermarkReading`].

    Raises:
        ValueError: if the picture is smaller than 32 pixels, or the rate is out of range.
    """
    if min(image.size) < MIN_SIDE:
        raise ValueError(
            f"the picture has {image.width} x {image.height} pixels, too few to look for a watermark in: expected "
            f"at least {MIN_SIDE} x {MIN_SIDE}"
        )
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate}, expected a number between 0 and 1")
    image = _middle(image).convert("RGB")
    spectrum = np.conj(np.fft.rfft2(_pattern(key)))
    views = list(_views(image))
    threshold = -NormalDist().inv_cdf(false_alarm_rate / (TILE * TILE * 2 * len(views)))
    readings = []
    for scale, size, box in views:
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS, box=box)
        residual = _whiten(np.asarray(scaled) @ _LUMA)
        for mirrored in (False, True):
            score = _score(residual[:, ::-1] if mirrored else residual, spectrum)
            readings.append(WatermarkReading(score, threshold, scale, mirrored))
            if readings[-1].found:
                return readings[-1]
    return max(readings, key=lambda reading: reading.score)


def _views(image: Image.Image) -> Iterator[tuple[float, tuple[int, int], tuple[float, ...] | None]]:
    """Enlargements to undo: the factor, the size afterwards, and the part of the picture, if not the whole."""
    exact = [*SCALES]
    if image.width == image.height:
        exact += [image.width / side for side in MODEL_SIDES if side != image.width]
        exact = [scale for scale in dict.fromkeys(exact) if scale in SCALES or SEARCHED[0] <= scale <= SEARCHED[1]]
    for scale in exact:
        size = tuple(round(side / scale) for side in image.size)
        if min(size) >= MIN_SIDE and max(size) <= MAX_SIDE:
            yield scale, size, None
    scale = SEARCHED[0]
    while scale <= SEARCHED[1]:
        size = tuple(min(SEARCH_SIDE, math.floor(side / scale)) for side in image.size)
        if min(size) >= MIN_SIDE:
            spans = [side * scale for side in size]
            left, top = ((whole - span) / 2 for whole, span in zip(image.size, spans, strict=True))
            yield scale, size, (left, top, left + spans[0], top + spans[1])
        scale *= 1 + SEARCH_STEP * SEARCH_SIDE / max(size)  # smaller ones stay in step for longer


@lru_cache(maxsize=8)
def _pattern(key: str) -> np.ndarray:
    """One tile, (64, 64) float64 with mean 0 and standard deviation 1."""
    # raw bits of a specified bit generator: the same numbers on every machine and with every version of numpy
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    bits = np.random.PCG64(seed).random_raw(TILE * TILE) >> 63
    signs = 2.0 * bits.astype(np.float64).reshape(TILE, TILE) - 1.0
    frequency = np.fft.fftfreq(TILE)
    radius = np.hypot(frequency[:, None], frequency[None])
    noise = np.fft.ifft2(np.fft.fft2(signs) * ((radius >= BAND[0]) & (radius <= BAND[1]))).real
    return noise / noise.std()


def _score(residual: np.ndarray, spectrum: np.ndarray) -> float:
    height, width = residual.shape
    folded = np.pad(residual - residual.mean(), ((0, -height % TILE), (0, -width % TILE)))
    folded = folded.reshape(-1, TILE, folded.shape[1] // TILE, TILE).sum(axis=(0, 2))
    correlation = np.fft.irfft2(np.fft.rfft2(folded) * spectrum, s=(TILE, TILE))
    deviation = correlation.std()
    return float(correlation.max() / deviation) if deviation > 1e-3 else 0.0  # one colour, but for rounding


def _detail(luma: np.ndarray) -> np.ndarray:
    """What the neighbourhood does not foretell, in grey levels."""
    return luma - _box_mean(luma, _WINDOW)


def _whiten(luma: np.ndarray) -> np.ndarray:
    """The detail by how rough the neighbourhood is: the weights that find a weak signal in noise of known variance."""
    detail = _detail(luma)
    return detail / (_box_mean(detail**2, _WINDOW).clip(0) + _DEVIATION_FLOOR**2)


def _box_mean(values: np.ndarray, window: int) -> np.ndarray:
    padded = np.pad(values, window // 2, mode="reflect")
    sums = np.pad(padded, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    total = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
    return total / window**2


def _middle(image: Image.Image) -> Image.Image:
    width, height = (min(side, MAX_SIDE) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


__all__ = ["WatermarkReading", "detect_watermark", "embed_watermark"]
