"""Our input pipeline against the usual ones on one's own images: CPU time per image, for each published recipe.

python tests/benchmarks/bench_pipelines.py FOLDER [IMAGES [REPEATS]]  64 images, 5 repeats

IMAGES is rounded up to whole batches. One thread, loaders with one worker. Everything is measured in turns in each
repeat; the ratios are medians over the repeats. Hugging Face style and timm style: see baselines.py.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cls import recipes
from cls.commands.bench import pipelines
from cls.commands.bench.cpu_time import Stream
from cls.commands.bench.run import PUBLISHED
from cls.commands.bench.sample import Sample, about, choose
from cls.config import Run, change
from cls.data.readers import Images, images_of
from cls.data.sources import load
from cls.models.backbones import input_statistics
from cls.transforms.ops import training_ops
from tests.benchmarks import baselines

AGAINST = pipelines.AGAINST | {"hugging_face": "end_to_end", "timm": "end_to_end"}


def measure(run: Run, split: Any, images: Images, chosen: Sequence[Sample], repeats: int) -> dict[str, Any]:
    """`cls bench`'s document of one pipeline, with the two usual loaders; ``images`` is ``split`` by row."""
    statistics = input_statistics(run)
    operations = training_ops(run.augment, run.data, statistics[0])
    rows, whole = [one.row for one in chosen], pipelines.cut(list(range(len(chosen))), run.train.batch)
    hugging_face = baselines.hugging_face(split, rows, baselines.published(operations, statistics), 1)
    timm = baselines.timm_style(images, rows, baselines.frame_first(operations), 1)
    with pipelines.one_thread(), ExitStack() as stack:
        streams = {
            "end_to_end": pipelines.own_stream(run, images, chosen),
            "hugging_face": Stream(hugging_face, whole),
            "timm": Stream(timm, whole),
        }
        for stream in streams.values():
            stack.callback(stream.close)
        found = pipelines.interleaved(pipelines.local_work(run, images, chosen), streams, run, chosen, repeats)
    return pipelines.document(run, len(chosen), found, AGAINST)


def show(row: dict[str, Any]) -> None:
    for name, found in row["us_per_image"].items():
        print(f"{row['recipe']:<14} {name:<28} {found['median']:8.0f} us ({found['min']:.0f}..{found['max']:.0f})")
    for pair, found in row["ratios"].items():
        print(f"{row['recipe']:<14} {pair:<28} {found['median']:8.2f} ({found['min']:.2f}..{found['max']:.2f})")


def show_means(rows: Sequence[dict[str, Any]]) -> None:
    for pair, mean in pipelines.geometric_means(rows).items():
        print(f"{'geometric mean':<14} {pair:<28} {mean:8.2f}")


def main(folder: str, count: int = 64, repeats: int = 5) -> None:
    rows = []
    for name in PUBLISHED:
        run = change(recipes.get(name), data={"path": folder})
        split = load(run.data, run.seed).train
        images, used = images_of(split), ceil(count / run.train.batch) * run.train.batch
        chosen, corrupt = choose(images, run.seed, run.data.balanced, used)
        if not rows:
            print({key: value for key, value in about(chosen, corrupt).items() if key != "formats"})
        rows.append(measure(run, split, images, chosen, repeats))
        show(rows[-1])
    show_means(rows)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
