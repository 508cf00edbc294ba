"""Images of a program, in memory or as files, as rows for prediction."""

import io
import logging
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Value
from numpy.typing import ArrayLike

from cls.data.split import COLUMNS
from cls.transforms.decode import upright_rgb

log = logging.getLogger("cls")
Picture = str | os.PathLike[str] | PIL.Image.Image | ArrayLike
"""A file, an image of Pillow, or an array of uint8: h w for grey, h w 3 for RGB."""


def load_pictures(pictures: Sequence[Picture]) -> Dataset:
    """Rows with label -1. The id of a file is its path as given, that of any other picture its number, from 0.

    What cannot be read gets a row with an error; ValueError for an array of another type or shape, and for no picture.
    """
    ids, images = list[str](), list[dict[str, str | bytes | None]]()
    for number, picture in enumerate(pictures):
        if isinstance(picture, str | os.PathLike):
            path = os.path.expanduser(os.fspath(picture))
            ids.append(path)
            images.append({"bytes": None, "path": os.path.abspath(path)})
        else:
            ids.append(str(number))
            images.append({"bytes": _png(picture, number), "path": None})
    columns = {"image": images, "id": ids, "label": [-1] * len(ids)}
    return Dataset.from_dict(columns, features=Features(COLUMNS | {"label": Value("int64")}))


def _png(picture: PIL.Image.Image | ArrayLike, number: int) -> bytes:
    """The picture as a file, without loss, so that it takes the way of all others; empty for one without pixels.

    An image of Pillow is read from its file only here, and that can fail.
    """
    image = picture if isinstance(picture, PIL.Image.Image) else _image(np.asarray(picture), number)
    buffer = io.BytesIO()
    try:
        upright_rgb(image).save(buffer, "PNG", compress_level=0)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError and others
        log.warning("image %d: %s", number, error)
        return b""
    return buffer.getvalue()


def _image(pixels: np.ndarray, number: int) -> PIL.Image.Image:
    if pixels.dtype.kind in "OSU":
        raise ValueError(f"image {number} is no picture: give a path, an image of Pillow, an array, or a list of them")
    found = f"image {number} is an array of {pixels.dtype} with shape {pixels.shape}"
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        raise ValueError(f"{found}: channels must come last, h w 3; transpose it with (1, 2, 0)")
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)) or not pixels.size:
        raise ValueError(f"{found}: expected h w or h w 3")
    if pixels.dtype != np.uint8:
        raise ValueError(f"{found}: expected uint8 from 0 to 255, without normalisation")
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else np.ascontiguousarray(pixels))
