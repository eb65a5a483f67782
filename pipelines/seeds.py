"""Seeds of pictures, wherever one asks for them: what is a seed, and which one each picture gets."""

import hashlib
import secrets


SEED_LIMIT = 2**32


def picture_seeds(seed: int | None, count: int) -> list[int]:
    """
    The seeds of several pictures of one request: seed, seed + 1, ..., from 0 again after the last one.

    Args:
        seed (`int`, *optional*): The first one's; a random one when not given.
        count (`int`): Number of pictures.
    """
    first = secrets.randbelow(SEED_LIMIT) if seed is None else seed
    return [(first + number) % SEED_LIMIT for number in range(count)]


def seed_of(item_id: str) -> int:
    """A seed that depends on an item's id alone: a retry gives the same picture."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:4], "big")


__all__ = ["SEED_LIMIT", "picture_seeds", "seed_of"]
