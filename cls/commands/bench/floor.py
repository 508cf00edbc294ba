"""What nobody can do without: decoding the images, nothing else."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import simplejpeg

from cls.commands.bench.sample import Sample
from cls.transforms.decode import FORMATS

ROUND = 1 << 20  # bytes


class Floor:
    """Decoding into one buffer by simplejpeg (libjpeg-turbo); by Pillow where that refuses a JPEG, or it is none."""

    def __init__(self, chosen: Sequence[Sample]) -> None:
        largest = max(one.width * one.height * 3 for one in chosen)
        self.buffer = np.ones(-(-largest // ROUND) * ROUND, np.uint8)  # ones: written to, so its pages are there
        self.slow = {one.draw for one in chosen if not self._takes(one)}

    def _takes(self, one: Sample) -> bool:
        if one.format not in ("JPEG", "MPO"):
            return False
        try:
            simplejpeg.decode_jpeg(one.data, buffer=self.buffer)
        except ValueError:
            return False
        return True

    def decode(self, part: Sequence[Sample]) -> None:
        for one in part:
            if one.draw not in self.slow:
                simplejpeg.decode_jpeg(one.data, buffer=self.buffer)
                continue
            with PIL.Image.open(io.BytesIO(one.data), formats=FORMATS) as image:
                image.convert("RGB")
