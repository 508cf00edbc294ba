"""JPEGs to train on, as large as photos of a data set; classes differ in hue and texture."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, classes: int, each: int, size: tuple[int, int]) -> None:
    """``each`` JPEGs of ``size`` (width, height) in every class's folder, the same ones every time."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        hue = Image.new("HSV", size, (label * 256 // classes, 160, 160)).convert("RGB")
        for number in range(each):
            coarse = generator.integers(0, 256, (5 + 3 * label, 5 + 3 * label, 3), dtype=np.uint8)
            texture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            Image.blend(hue, texture, 0.5).save(folder / str(label) / f"{number}.jpg", quality=90)
