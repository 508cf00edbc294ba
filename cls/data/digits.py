"""The data set of the demo, which needs no download."""

import importlib.metadata
import io

import numpy as np
import PIL.Image
import pyarrow as pa
from datasets import Dataset, Features

from cls.data.split import COLUMNS, Split
from cls.data.subset import held_out


def splits() -> dict[str, Split]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey; a fixed fifth is validation."""
    pictures, labels = _scans()
    ids = [f"digit-{i:04d}" for i in range(len(labels))]
    held = held_out(pa.chunked_array([ids]), labels, 0.2, 0, "digits")
    parts = {}
    for split, rows in (("train", np.setdiff1d(np.arange(len(ids)), held)), ("val", held)):
        images = [{"bytes": _png(np.rint(pictures[i] * 255 / 16).astype(np.uint8)), "path": None} for i in rows]
        table = Dataset.from_dict({"image": images, "id": [ids[i] for i in rows]}, features=Features(COLUMNS))
        parts[split] = Split(table, labels[rows], tuple(map(str, range(10))))
    return parts


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Grey values 0 to 16 [1797, 8, 8] and digits [1797]: the file itself, as importing scikit-learn takes 3 s."""
    files = importlib.metadata.files("scikit-learn") or []  # None: installed without a list of its files
    if file := next((file for file in files if file.name == "digits.csv.gz"), None):
        values = np.loadtxt(str(file.locate()), delimiter=",")
        return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.images, loaded.target


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
