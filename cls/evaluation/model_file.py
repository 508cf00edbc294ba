"""best/model.safetensors: the weights, and in its header everything else that prediction needs."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cls.config import Run, from_yaml, to_yaml
from cls.data.sources import Splits, labels_of
from cls.models.backbones import Statistics, input_statistics
from cls.validate import check


def fallback_class(splits: Splits) -> int:
    """The most frequent training class: the prediction for an image that cannot be read."""
    return int(np.bincount(labels_of(splits.train)).argmax())


def best_header(run: Run, splits: Splits) -> dict[str, str]:
    """The header of a run's best/model.safetensors."""
    return {
        "config": to_yaml(run),
        "classes": json.dumps(splits.classes),
        "statistics": json.dumps(input_statistics(run)),
        "fallback": str(fallback_class(splits)),
    }


def read_header(path: Path) -> tuple[Run, tuple[str, ...], Statistics, int]:
    """Run, classes, input statistics and fallback class of a best/model.safetensors; ValueError for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        run, classes, fallback = from_yaml(header["config"]), json.loads(header["classes"]), int(header["fallback"])
        check(run)
        mean, std = json.loads(header["statistics"])
        _need(isinstance(classes, list) and all(type(name) is str for name in classes), "classes are not names")
        _need(0 < len(classes) == len(set(classes)), "classes are not different names")
        _need(0 <= fallback < len(classes), f"the fallback class is {fallback} of {len(classes)}")
        for values in (mean, std):
            numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
            _need(numbers and len(values) == 3, "statistics are not three numbers each")
        _need(all(abs(m) < 1e3 and 0 < s < 1e3 for m, s in zip(mean, std, strict=True)), "statistics are out of range")
        return run, tuple(classes), (tuple(mean), tuple(std)), fallback
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a model written by train.py ({error}): name a run directory with best/"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def _need(good: bool, problem: str) -> None:
    if not good:
        raise ValueError(problem)
