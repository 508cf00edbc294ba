"""One image from its bytes to the pixels that a worker sends, by the fused path or by the reference."""

import numpy as np

from cls.images import fused, reference
from cls.images.decode import decode
from cls.images.draw import draw
from cls.images.jpeg import Decoder, Pixels
from cls.images.ops import Op

Area = tuple[int, int, int, int]
"""The box to erase: top, left, height, width; zeros for none."""


class Renderer:
    """Carries operations out on one image after the other; the decoder's memory is used again and again."""

    def __init__(self, ops: tuple[Op, ...], exact_order: bool) -> None:
        self.ops, self.exact_order, self._decoder = ops, exact_order, Decoder()

    def __call__(self, data: bytes | memoryview, rng: np.random.Generator) -> tuple[Pixels, Area]:
        """uint8 [h, w, 3], to be copied before the next image, and the area to erase; BadImage if it is none."""
        if self.exact_order:
            whole = decode(bytes(data))
            pixels, area = reference.apply(whole, draw(self.ops, *whole.size, rng))
            return pixels.permute(1, 2, 0).numpy(), area
        image = self._decoder.open(data)
        return fused.apply(image, draw(self.ops, image.width, image.height, rng), self._decoder)
