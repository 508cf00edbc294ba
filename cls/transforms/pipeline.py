"""One image from its bytes to a worker's pixels, by the fused path or by the reference."""

from typing import NamedTuple

import numpy as np

from cls.transforms import fused, reference
from cls.transforms.decode import CorruptImageError, decode
from cls.transforms.geometry import Plan, arrange
from cls.transforms.jpeg import Decoder, Jpeg, Pixels
from cls.transforms.ops import Op
from cls.transforms.params import make_params

Area = tuple[int, int, int, int]  # the box to erase: top, left, height, width; zeros for none


class Planned(NamedTuple):
    """A JPEG that is not decoded yet, and its plan."""

    image: Jpeg
    plan: Plan


class Rendered(NamedTuple):
    pixels: Pixels  # uint8 [h, w, 3]
    area: Area


class Renderer:
    """Applies operations to one image after the other; the decoder's buffer is reused."""

    def __init__(self, ops: tuple[Op, ...], exact_order: bool) -> None:
        self.ops, self.exact_order, self._decoder = ops, exact_order, Decoder()

    def plan(
        self, data: bytes | memoryview | CorruptImageError, rng: np.random.Generator
    ) -> Planned | Rendered | CorruptImageError:
        """Header and augmentation parameters, for a whole batch before its first pixel: between decodings, which evict
        Python from the CPU caches, this takes twice as long. Other formats than JPEG are rendered here.
        """
        try:
            if isinstance(data, CorruptImageError):
                return data
            if self.exact_order:
                whole = decode(bytes(data))
                pixels, area = reference.apply(whole, make_params(self.ops, *whole.size, rng))
                return Rendered(pixels.permute(1, 2, 0).numpy(), area)
            image = self._decoder.open(data)
            plan = arrange(make_params(self.ops, image.width, image.height, rng), image.width, image.height)
            if isinstance(image, Jpeg):
                return Planned(image, plan)
            return Rendered(np.array(fused.carry_out(image, plan, self._decoder)), plan.box)
        except CorruptImageError as error:
            return error

    def render(self, planned: Planned | Rendered | CorruptImageError) -> Rendered:
        """The pixels; copy them before the next image. CorruptImageError if it cannot be decoded."""
        if isinstance(planned, CorruptImageError):
            raise planned
        if isinstance(planned, Rendered):
            return planned
        return Rendered(fused.carry_out(planned.image, planned.plan, self._decoder), planned.plan.box)
