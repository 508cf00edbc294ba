"""Photos as phones take them: our pipeline against the order in which reports 4 and 5 do it, CPU time per image.

python tests/benchmarks/bench_phone.py [IMAGES [REPEATS]]  16 images, 5 repeats

1200 x 1600 JPEGs of about 350 kB, made here: the photos of ../shared/data/clothing where they are, else coloured
shapes, enlarged, with noise of a camera's kind. Prints what bench_pipelines.py prints, of these two recipes.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from PIL import Image

from cls import recipes
from cls.commands.bench.sample import about, choose
from cls.config import change
from cls.data.readers import images_of
from cls.data.sources import load
from tests.benchmarks.bench_pipelines import measure, show, show_means

SIZE = 1200, 1600
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clothing" / "train"
NOISE, QUALITY = 6.5, 85  # grey levels; together they make about 350 kB


def photo(index: int, sources: list[Path]) -> Image.Image:
    """One photo: a source image or random shapes, enlarged, with noise of two grain sizes."""
    rng = np.random.default_rng(index)
    if sources:
        small = Image.open(sources[index * len(sources) // 64 % len(sources)]).convert("RGB")
    else:
        small = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    coarse = rng.normal(0, NOISE, (SIZE[1] // 2, SIZE[0] // 2, 3)).repeat(2, 0).repeat(2, 1)
    noisy = pixels + rng.normal(0, NOISE, pixels.shape) * 0.5 + coarse * 0.5
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def main(images: int, repeats: int) -> None:
    sources = sorted(PHOTOS.glob("*/*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        for index in range(images):
            for split in ("train", "val"):  # the validation split is not read
                to = Path(folder, split, f"class-{index % 2}", f"{index}.jpg")
                to.parent.mkdir(parents=True, exist_ok=True)
                if split == "train":
                    photo(index, sources).save(to, quality=QUALITY)
                elif index < 2:
                    Image.new("RGB", (8, 8)).save(to)
        rows = []
        for name in ("se-resnext", "resnet50-mlp"):
            recipe = recipes.get(name)
            run = replace(recipe, data=replace(recipe.data, path=folder))
            run = change(run, train={"batch": images, "micro_batch": min(images, recipe.train.micro_batch)})
            split = load(run.data, run.seed).train
            chosen, corrupt = choose(images_of(split), run.seed, False, images)
            if not rows:
                print({name: found for name, found in about(chosen, corrupt).items() if name != "formats"})
            rows.append(measure(run, split, images_of(split), chosen, repeats))
            show(rows[-1])
        show_means(rows)


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], *("16", "5")[len(sys.argv) - 1 :]]))
