"""Leave out near-duplicates, and split so that no person is in two splits."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..._versions import need
from .records import FaceRecord, FolderWriter
from .sources import FaceStream


_HASH_SIDE = 16  # of the perceptual hash: 256 bits tell aligned portraits apart, of which the usual 64 confuse many
_BITS = _HASH_SIDE**2
_SMALL_SIDE = 24  # pixels of a thumbnail
_COLOUR_SHIFT = 12  # levels of 255 by which the mean colour of a copy may differ, beside its brightness
SPLIT_BY = ("person", "picture")


class NearDuplicates:
    """
    Finds copies of earlier pictures: recompressed, resized, a little brighter.

    The perceptual hash (DCT) of the package `imagehash` finds candidates, small colour pictures decide: two different
    pictures of one person may have nearly equal hashes, but differ in a place (mouth, glasses) or in colours; what
    happens to copies on the web changes every place a little.

    Hashes within the distance share, by the pigeonhole principle, one of `distance + 1` bands of bits exactly; only
    pictures that share a band are compared.

    Args:
        distance (`int`, *optional*, defaults to 16): Most bits, of 256, in which equal pictures may differ.

    Raises:
        ValueError: if the distance is not in [0, 127].
        ImportError: if `imagehash` is not installed.
    """

    def __init__(self, distance: int = 16):
        if not 0 <= distance < _BITS // 2:
            raise ValueError(f"distance={distance}, expected 0 to {_BITS // 2 - 1} of {_BITS} bits")
        self.distance = distance
        self.bounds = [_BITS * band // (distance + 1) for band in range(distance + 2)]
        self.seen: list[tuple[int, str, bytes]] = []  # hash, name, thumbnail
        self.bands: list[dict[int, list[int]]] = [{} for _ in range(distance + 1)]

    def add(self, image: Image.Image, name: str) -> str | None:
        """
        Remember a picture, unless it looks like an earlier one.

        Returns:
            The name of the earlier picture, or `None`.
        """
        value, small = perceptual_hash(image), thumbnail(image)
        edges = zip(self.bounds, self.bounds[1:], strict=False)
        keys = [(value >> low) & ((1 << (high - low)) - 1) for low, high in edges]
        for band, key in zip(self.bands, keys, strict=True):
            for place in band.get(key, ()):
                known, earlier, other = self.seen[place]
                if (known ^ value).bit_count() <= self.distance:
                    if same_picture(small, np.frombuffer(other, np.uint8).reshape(small.shape)):
                        return earlier
        for band, key in zip(self.bands, keys, strict=True):
            band.setdefault(key, []).append(len(self.seen))
        self.seen.append((value, name, small.tobytes()))
        return None


def thumbnail(image: Image.Image) -> np.ndarray:
    """A picture as 24 x 24 pixels, uint8."""
    return np.asarray(image.convert("RGB").resize((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.HAMMING))


def same_picture(first: np.ndarray, second: np.ndarray) -> bool:
    """
    Whether two thumbnails are of one picture, whatever its brightness and contrast: their greatest difference is small
    everywhere, and their colours are the same.
    """
    pictures = [np.asarray(picture, dtype=np.float64) for picture in (first, second)]
    colours = [picture.mean((0, 1)) - picture.mean() for picture in pictures]
    if np.abs(colours[0] - colours[1]).max() > _COLOUR_SHIFT:
        return False
    evened = [(picture - picture.mean((0, 1))) / (picture.std() + 6) for picture in pictures]
    difference = np.abs(evened[0] - evened[1]).mean(-1)
    return difference.mean() <= 0.1 and np.quantile(difference, 0.99) <= 0.2 and difference.max() <= 0.3


def perceptual_hash(image: Image.Image) -> int:
    """The perceptual hash of a picture, 256 bits: near for pictures that look alike."""
    imagehash = need("imagehash", "data")
    return int(str(imagehash.phash(image, hash_size=_HASH_SIDE)), 16)


def parse_splits(text: str) -> dict[str, float]:
    """
    The splits that a command line names, `"train=0.9,test=0.1"`, with shares that add up to one.

    Raises:
        ValueError: if a share is no positive number, or they add up to more or less.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        try:
            splits[name] = float(share)
        except ValueError:
            splits[name] = -1.0
        if not equals or not name.isidentifier() or splits[name] <= 0:
            raise ValueError(f"splits has {part!r}, expected NAME=SHARE, for example train=0.9,test=0.1")
    if abs(sum(splits.values()) - 1) > 1e-6:
        raise ValueError(f"the shares of {text!r} add up to {sum(splits.values()):g}, expected 1")
    return splits


def split_of(record: FaceRecord, splits: dict[str, float], seed: int = 0, split_by: str = "person") -> str:
    """
    The split of a record: decided by its person alone, so that all pictures of a person are in one split, on every
    machine and whatever else is in the data set.

    Args:
        record ([`FaceRecord`]): The record; without identity, its source and name stand for the person.
        splits (`dict[str, float]`): Name to share; shares add up to one.
        seed (`int`, *optional*, defaults to 0): Another one gives another division.
        split_by (`str`, *optional*, defaults to `"person"`): `"picture"` divides the pictures of a person too.
    """
    known = record.identity is not None and split_by == "person"
    person = f"identity {record.identity}" if known else f"picture {record.source} {record.id}"
    digest = hashlib.sha256(f"{seed} {person}".encode()).digest()
    place, total = int.from_bytes(digest[:8]) / 2**64, 0.0
    for name, share in splits.items():
        total += share
        if place < total:
            return name
    return name


@dataclass
class Cleaned:
    """What [`clean`] did: pictures and known people of each split, and (left out, looks like) of near-duplicates."""

    pictures: dict[str, int]
    people: dict[str, int]
    left_out: list[tuple[str, str]]


def clean(
    stream: FaceStream,
    output: str | Path,
    splits: dict[str, float],
    distance: int = 16,
    seed: int = 0,
    overwrite: bool = False,
    split_by: str = "person",
) -> Cleaned:
    """
    Write a data set without its near-duplicates, one folder a split, no person in two of them.

    Args:
        stream ([`FaceStream`]): The data set.
        output (`str` or `Path`): Gets a folder for each split.
        splits (`dict[str, float]`): Name to share, see [`parse_splits`].
        distance (`int`, *optional*, defaults to 16): Bits in which near-duplicates differ at most; -1 keeps them.
        seed (`int`, *optional*, defaults to 0): Seed of the division.
        overwrite (`bool`, *optional*, defaults to `False`): Whether folders that exist may be replaced.
        split_by (`str`, *optional*, defaults to `"person"`): `"picture"` lets a person be in several splits.

    Raises:
        FileExistsError: if a folder exists and `overwrite` is not given.
        ValueError: if there is no usable sample, or a split would be empty; nothing is written then.
    """
    duplicates = NearDuplicates(distance) if distance >= 0 else None
    left_out: list[tuple[str, str]] = []
    people: dict[str, set[str]] = {name: set() for name in splits}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(FolderWriter(Path(output) / name, overwrite)) for name in splits}
        for record in tqdm(stream, desc="cleaning", unit="face", disable=None):
            earlier = duplicates.add(record.image, record.id) if duplicates else None
            if earlier is not None:
                left_out.append((record.id, earlier))
                continue
            split = split_of(record, splits, seed, split_by)
            writers[split].add(record)
            people[split] |= set() if record.identity is None else {record.identity}
        pictures = {name: writer.count for name, writer in writers.items()}
        if not any(pictures.values()):
            raise ValueError(f"{stream.name} has no usable sample")
        if empty := [name for name, count in pictures.items() if not count]:
            raise ValueError(
                f"the split {empty[0]} would be empty: {sum(pictures.values())} pictures of "
                f"{len(set().union(*people.values()))} known people, none of whom is put into two splits; give larger "
                "shares, fewer splits, another --seed, or --split-by picture"
            )
    return Cleaned(pictures, {name: len(found) for name, found in people.items()}, left_out)
