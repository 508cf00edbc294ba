"""Photos on the page: small JPEGs inside the file, without the camera's metadata."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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
"""Thumbnails of wrong images, the most confident ones; 1 MB of page."""


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A training image near a wrong validation image."""

    id: str
    picture: str
    similarity: float
    """Cosine of the angle between the features before the output layer."""


class Overlays(NamedTuple):
    """Heat maps over one image, as data: addresses; '' where there is none to show."""

    predicted: str
    true: str
    attention: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """``thumbs``, ``heat`` and ``neighbors`` by row of the validation split."""

    thumbs: dict[int, str] = field(default_factory=dict)
    """data: addresses."""
    heat: dict[int, Overlays] = field(default_factory=dict)
    neighbors: dict[int, tuple[list[Neighbor], list[Neighbor]]] = field(default_factory=dict)
    """Nearest training images of the predicted and of the true class, nearest first."""
    note: str = ""
    """What ``heat`` shows and what was compared for ``neighbors``, or why there are none, or no pictures at all."""


def thumbnails(images: Images, p: Predictions) -> dict[int, str]:
    """Data addresses of the most confidently wrong images, by row; without corrupt images and those not in ``p``."""
    decoder = Decoder()
    rows = [
        row for row in wrong(p)[:THUMBNAILS].tolist() if len(images) == len(p.ids) and images.name(row) == p.ids[row]
    ]
    pictures = {row: thumbnail(decoder, images.read([row])[0]) for row in rows}
    return {row: picture for row, picture in pictures.items() if picture}


def mistakes(p: Predictions, thumbs: Mapping[int, str]) -> list[Mistake]:
    """The wrong images that have a thumbnail, the most confident first."""
    found = []
    for row in wrong(p).tolist():
        if row in thumbs:
            guess, picture = int(p.probs[row].argmax()), base64.b64decode(thumbs[row].partition(",")[2])
            names = p.classes[p.labels[row]], p.classes[guess]
            found.append(Mistake(p.ids[row], picture, *names, float(p.probs[row, guess])))
    return found


def thumbnail(decoder: Decoder, content: Encoded) -> str:
    """A data: address of a JPEG of at most SIDE pixels; '' for a corrupt image."""
    try:
        if isinstance(content, CorruptImageError):
            raise content
        image = decoder.open(content)
        k = next(k for k in (8, 4, 2, 1) if k == 1 or max(image.width, image.height) >= SIDE * k)
        pixels, _ = decoder.pixels(image, k, shrinks=True)
    except CorruptImageError:
        return ""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))  # pixels only: camera metadata may hold the place
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return address(picture)


def address(picture: Image.Image) -> str:
    """A data: address of the picture as a JPEG."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
