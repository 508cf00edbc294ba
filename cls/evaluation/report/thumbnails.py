"""Photos on the page: small JPEGs inside the file, without what cameras write beside the pixels."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from cls.data.readers import Encoded, Images
from cls.evaluation.metrics import wrong
from cls.evaluation.predictions import Predictions
from cls.tracking.metrics_log import Mistake
from cls.transforms.decode import CorruptImageError
from cls.transforms.jpeg import Decoder

SIDE = 128
"""Longer side of a thumbnail, pixels; about 4 kB."""
THUMBNAILS = 200
"""Of the most confidently wrong images; 1 MB of page."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """A training image that lies near a wrong one."""

    id: str
    picture: str
    similarity: float
    """Cosine of the angle between the features before the output layer."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """``thumbs`` and ``near`` by row of the validation split."""

    thumbs: dict[int, str] = field(default_factory=dict)
    """data: addresses."""
    near: dict[int, tuple[list[Near], list[Near]]] = field(default_factory=dict)
    """Nearest training images of the predicted and of the true class, nearest first."""
    note: str = ""
    """What was looked at for ``near``, or why there are no pictures."""


def thumbnails(images: Images, p: Predictions) -> dict[int, str]:
    """Of the most confidently wrong images, by row; without those that are not ``p``'s or cannot be decoded now."""
    decoder, found = Decoder(), {}
    for row in wrong(p)[:THUMBNAILS].tolist():
        picture = thumbnail(decoder, images.read([row])[0]) if _same(images, p.ids, row) else ""
        if picture:
            found[row] = picture
    return found


def mistakes(p: Predictions, thumbs: Mapping[int, str]) -> list[Mistake]:
    """The wrong images that have a thumbnail, the most confident first."""
    found = []
    for row in wrong(p).tolist():
        if row in thumbs:
            guess, picture = int(p.probs[row].argmax()), base64.b64decode(thumbs[row].partition(",")[2])
            names = p.classes[p.labels[row]], p.classes[guess]
            found.append(Mistake(p.ids[row], picture, *names, float(p.probs[row, guess])))
    return found


def _same(images: Images, ids: Sequence[str], row: int) -> bool:
    return len(images) == len(ids) and images.name(row) == ids[row]


def thumbnail(decoder: Decoder, content: Encoded) -> str:
    """A data: address of a JPEG of at most SIDE pixels; '' where the image is broken."""
    try:
        if isinstance(content, CorruptImageError):
            raise content
        image = decoder.open(content)
        k = next(k for k in (8, 4, 2, 1) if k == 1 or max(image.width, image.height) >= SIDE * k)
        pixels, _ = decoder.pixels(image, k, shrinks=True)
    except CorruptImageError:
        return ""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))  # of pixels alone: a camera notes where it was
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
