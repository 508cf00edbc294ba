"""Advice in one sentence: images per second that the GPUs need, against what the cores load."""

from math import ceil
from statistics import median
from typing import Any, NamedTuple

from cls.commands.gpus import find, precision_on
from cls.commands.options import BenchOptions
from cls.commands.plan import roofline
from cls.commands.plan.memory import trace_step
from cls.config import Run

ROOMY = 1.5  # smaller copies pay off for images whose short side is this many times what the recipe needs


class Demand(NamedTuple):
    """Images per second of one GPU, and the source of the figure."""

    per_gpu: float
    device: str
    source: str


def demand(run: Run, classes: int, options: BenchOptions, loop: dict[str, Any]) -> Demand | None:
    """A roofline for a named GPU; else the speed of this machine without a loader; None if unknown."""
    if options.gpu:
        gpu = find(options.gpu)
        precision = precision_on(run, gpu)
        step = trace_step(run, classes, precision)
        found = roofline.estimate(step, run, gpu, precision, 1, 1, 10.0, False, roofline.FASTER)
        return Demand(run.train.batch / found.step, gpu.name, "estimated (the faster end of `cls plan`)")
    if "images_per_second" in loop:
        return Demand(loop["images_per_second"]["resident"]["median"], loop["device"], "measured on a resident batch")
    return None


def advise(
    run: Run, options: BenchOptions, want: Demand | None, figures: dict[str, Any], short_side: float, cores: float
) -> dict[str, Any]:
    """``figures``: of this run's pipeline (:mod:`cls.commands.bench.pipelines`); ``cores`` may be used here."""
    per_core = 1e6 / median(figures["us_per_image"]["end_to_end"]["repeats"])
    document: dict[str, Any] = {"images_per_second_per_core": per_core, "cores": cores, "gpus": options.gpus}
    if want is None:
        text = f"One core feeds {per_core:.0f} images/s; name your GPU (--gpu rtx3090) for advice."
        return document | {"text": text}
    spare = max(0.0, cores - options.gpus)
    document |= {
        "device": want.device,
        "source": want.source,
        "images_per_second_per_gpu": want.per_gpu,
        "images_per_second_wanted": want.per_gpu * options.gpus,
        "images_per_second_of_the_cores": per_core * spare,
        "cores_per_gpu": roofline.cores_needed(want.per_gpu, per_core),
    }
    many = f"{options.gpus} x {want.device}" if options.gpus > 1 else want.device
    facts = (
        f"{run.recipe}: {many} takes {want.per_gpu * options.gpus:.0f} images/s ({want.source}), one core feeds "
        f"{per_core:.0f}"
    )
    return document | {"text": f"{facts}: {_remedy(run, options, want, per_core, short_side, cores)}."}


def _remedy(run: Run, options: BenchOptions, want: Demand, per_core: float, short_side: float, cores: float) -> str:
    loaders, needed, asked = want.per_gpu / per_core, roofline.cores_needed(want.per_gpu, per_core), run.data.workers
    if want.device == "cpu" and loaders <= 1:
        return "computing is the limit, not the input, so there is nothing to do"
    if cores >= needed * options.gpus:
        if 0 <= asked < loaders:
            return f"leave --data.workers out, or give {ceil(loaders)}; {asked} are too few"
        return f"{needed} cores per GPU are enough and {cores:g} are here, so there is nothing to do"
    text = f"ask for {needed} cores per GPU ({needed * options.gpus} in all; {cores:g} are here)"
    enough = round(run.data.size / run.data.crop_pct)
    enough *= 2 if run.augment.frame == "crop" else 1  # small boxes are enlarged
    if short_side >= ROOMY * enough:
        text += f", or make smaller copies with `cls pack --short {enough}` (their short side is {short_side:.0f} now)"
    return text
