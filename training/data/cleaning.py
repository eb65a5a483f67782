"""`unif2ace data clean`: leave out near-duplicates, and split so that no person is in two splits."""

import argparse
import hashlib
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...cli.common import seed_int
from .folder_writer import FolderWriter
from .records import FaceRecord
from .source_arguments import add_source_arguments, open_source, print_broken


EXAMPLES = """\
examples:
  unif2ace data clean photos/ -o cleaned/
  unif2ace data clean celeba:/data/celeba -o cleaned/ --splits train=0.9,validation=0.05,test=0.05

Each split is a folder of pictures with metadata.jsonl. Near-duplicates are found by perceptual hash over the whole
data set, so none is left on the two sides of a split. A picture whose person is not known is a person of its own.
"""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `unif2ace data clean`."""
    add_source_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="has a folder for each split"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace these folders")
    parser.add_argument("--splits", default="train=1", metavar="NAME=SHARE,...", help="default: %(default)s")
    parser.add_argument(
        "--distance",
        type=int,
        default=16,
        metavar="BITS",
        help=f"near-duplicates differ in at most so many of {_BITS} bits; -1 keeps them (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="of the division (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Clean a data set."""
    splits = parse_splits(arguments.splits)
    duplicates = NearDuplicates(arguments.distance) if arguments.distance >= 0 else None
    stream = open_source(arguments, need_text=False)
    left_out: list[tuple[str, str]] = []
    with ExitStack() as stack:
        writers = {name: _Split(arguments.output / name, stack, arguments.overwrite) for name in splits}
        for record in tqdm(stream, desc="cleaning", unit="face", disable=None):
            earlier = duplicates.add(record.image, record.id) if duplicates else None
            if earlier is None:
                writers[split_of(record, splits, arguments.seed)].add(record)
            else:
                left_out.append((record.id, earlier))
        if not any(writer.count for writer in writers.values()):
            raise ValueError(f"{arguments.source} has no usable sample")
    print_broken(stream)
    for name, earlier in left_out[:10]:
        print(f"left out {name}: looks like {earlier}")
    print(f"{len(left_out)} near-duplicates left out")
    for name, writer in writers.items():
        print(f"{arguments.output / name}: {writer.count} pictures, {len(writer.people)} known people")


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
