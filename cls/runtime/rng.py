"""Randomness as a function of tags: the same (seed, tags) give the same numbers in any process, at any time."""

import hashlib
import json
from typing import Any

import numpy as np

_ZEROS = np.zeros(4, np.uint64)
_FRESH: Any = {"bit_generator": "Philox", "buffer": _ZEROS, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}


def _digest(seed: int, tags: tuple[str | int, ...]) -> bytes:
    return hashlib.blake2b(json.dumps([seed, *tags]).encode(), digest_size=16).digest()


def fold(seed: int, *tags: str | int) -> int:
    """Hash a seed and tags to a 128-bit key.

    Sums such as ``seed + epoch`` collide (seed 1 epoch 2 = seed 2 epoch 1); a hash of the whole tuple does not.
    Tags are Python strings and integers; their types count, so ``fold(0, 1) != fold(0, "1")``.
    """
    return int.from_bytes(_digest(seed, tags), "little")


def generator(seed: int, *tags: str | int) -> np.random.Generator:
    """A NumPy Philox generator with the full 128-bit key (torch's CPU generators keep only 32 bits of a seed)."""
    return np.random.Generator(np.random.Philox(key=fold(seed, *tags)))


def rewind(rng: np.random.Generator, seed: int, *tags: str | int) -> np.random.Generator:
    """Make a Philox generator the one that ``generator(seed, *tags)`` gives: 4 us instead of 14 (it draws entropy)."""
    key = np.frombuffer(_digest(seed, tags), "<u8")
    rng.bit_generator.state = _FRESH | {"state": {"counter": _ZEROS, "key": key}}
    return rng


def torch_seed(seed: int, *tags: str | int) -> int:
    """The same key cut to the 63 bits that torch generators accept."""
    return fold(seed, *tags) & (2**63 - 1)
