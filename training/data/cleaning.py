"""Leave out near-duplicates, and split so that no person is in two splits."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from .records import FaceRecord, FolderWriter
from .sources import FaceStream


_HASH_SIDE = 16  # of the perceptual hash: 256 bits tell aligned portraits apart, of which the usual 64 confuse many
_BITS = _HASH_SIDE**2


class NearDuplicates:
    """
    Finds pictures that look like an earlier one, by the perceptual hash (DCT) of the package `imagehash`.

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
        self.hashes: list[int] = []
        self.names: list[str] = []
        self.bands: list[dict[int, list[int]]] = [{} for _ in range(distance + 1)]

    def add(self, image: Image.Image, name: str) -> str | None:
        """
        Remember a picture, unless it looks like an earlier one.

        Returns:
            The name of the earlier picture, or `None`.
        """
        value = perceptual_hash(image)
        edges = zip(self.bounds, self.bounds[1:], strict=False)
        keys = [(value >> low) & ((1 << (high - low)) - 1) for low, high in edges]
        for band, key in zip(self.bands, keys, strict=True):
            for place in band.get(key, ()):
                if (self.hashes[place] ^ value).bit_count() <= self.distance:
                    return self.names[place]
        for band, key in zip(self.bands, keys, strict=True):
            band.setdefault(key, []).append(len(self.hashes))
        self.hashes.append(value)
        self.names.append(name)
        return None


def perceptual_hash(image: Image.Image) -> int:
    """The perceptual hash of a picture, 256 bits: near for pictures that look alike."""
    try:
        import imagehash
    except ImportError as error:
        raise ImportError("finding duplicates needs imagehash: pip install 'unif2ace[data]'") from error
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


def split_of(record: FaceRecord, splits: dict[str, float], seed: int = 0) -> str:
    """
    The split of a record: decided by its person alone, so that all pictures of a person are in one split, on every
    machine and whatever else is in the data set.

    Args:
        record ([`FaceRecord`]): The record; without identity, its source and name stand for the person.
        splits (`dict[str, float]`): Name to share; shares add up to one.
        seed (`int`, *optional*, defaults to 0): Another one gives another division.
    """
    person = f"identity {record.identity}" if record.identity is not None else f"picture {record.source} {record.id}"
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

    Raises:
        FileExistsError: if a folder exists and `overwrite` is not given.
        ValueError: if there is no usable sample.
    """
    output = Path(output)
    duplicates = NearDuplicates(distance) if distance >= 0 else None
    left_out: list[tuple[str, str]] = []
    with ExitStack() as stack:
        writers = {name: _Split(output / name, stack, overwrite) for name in splits}
        for record in tqdm(stream, desc="cleaning", unit="face", disable=None):
            earlier = duplicates.add(record.image, record.id) if duplicates else None
            if earlier is None:
                writers[split_of(record, splits, seed)].add(record)
            else:
                left_out.append((record.id, earlier))
        if not any(writer.count for writer in writers.values()):
            raise ValueError(f"{stream.name} has no usable sample")
    return Cleaned(
        {name: writer.count for name, writer in writers.items()},
        {name: len(writer.people) for name, writer in writers.items()},
        left_out,
    )


class _Split:
    """The folder of one split, made with its first record."""

    def __init__(self, folder: Path, stack: ExitStack, overwrite: bool):
        self.writer, self.stack, self.open = FolderWriter(folder, overwrite), stack, False
        self.people: set[str] = set()

    @property
    def count(self) -> int:
        return self.writer.count

    def add(self, record: FaceRecord) -> None:
        if not self.open:
            self.stack.enter_context(self.writer)
            self.open = True
        self.writer.add(record)
        if record.identity is not None:
            self.people.add(record.identity)
