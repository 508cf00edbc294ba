"""What `cls bench` measures; apart from the measurements, whose libraries take seconds to load."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and how long."""

    images: int = 64
    """Images of each measurement, the same ones for all; rounded up to whole batches."""
    repeats: int = 5
    """Interleaved repetitions, of which the medians are told."""
    recipes: Literal["all", "this"] = "all"
    """The input pipelines of the five published recipes and this run's, or this run's only."""
    peers: bool = True
    """Also measure a Hugging Face style and a timm style loader with the same augmentation."""
    steps: int = 0
    """Optimizer steps of one measurement of the training loop; 0: as many as fit into --seconds, at most 20."""
    seconds: float = 60.0
    """Most seconds for the training loop; where a step lasts too long for it, the loop is left out."""
    gpu: str = ""
    """GPU type that is to be fed (as `cls plan` takes it); empty: this machine's own device, as measured."""
    gpus: int = 1
    """GPUs that this machine's cores are to feed."""
