"""The image and pixels of each sample index, by rank: the proof that each image is used exactly once per epoch."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cls.runtime.files import Lines
from cls.tracking.run_files import read_data

if TYPE_CHECKING:  # `cls audit` needs neither torch nor datasets
    from cls.data.loader import Batch
    from cls.data.readers import Images

HEADER = ("step", "index", "id", "pixels")


class Ledger:
    """One rank's rows of one attempt (step, sample index, image, hash of its pixels): ledger/<attempt>-<rank>.csv."""

    def __init__(self, path: Path, images: "Images", batch: int) -> None:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # of a start that failed before its attempt began
        self._lines, self._images, self._batch = Lines(path), images, batch

    def note(self, batch: "Batch") -> None:
        rows = []
        for index, row, pixels in zip(batch.indices, batch.rows, batch.pixels, strict=True):
            name = self._images.name(row).replace('"', '""')
            digest = hashlib.blake2b(pixels.permute(1, 2, 0).numpy(), digest_size=16).hexdigest()
            rows.append(f'{index // self._batch},{index},"{name}",{digest}\n')
        self._lines.add("".join(rows).encode())


def id_sum(names: Iterable[str]) -> str:
    """A 128-bit hash of a set of ids, in hexadecimal: the sum of their hashes, in any order; 0.5 us per id."""
    total = sum(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest()) for name in names)
    return f"{total % 2**128:032x}"


def id_total(sums: Iterable[str]) -> str:
    """What :func:`id_sum` gives for all the ids of several sets together."""
    return f"{sum(int(each, 16) for each in sums) % 2**128:032x}"


def all_pairs(out: Path) -> str:
    """The sum of "pairs" in data.json over the splits of a run directory; '' where it is not known."""
    found = [str(facts.get("pairs", "")) for facts in read_data(out).values()]
    return id_total(found) if found and all(found) else ""
