"""cls in Python: train, load, predict and compare, as the commands do.

    run = cls.train("mlp-head", data="photos", epochs=3)    # the same processes as accelerate launch train.py
    model = cls.load(run)                                   # or an export; several: the mean of their probabilities
    model.predict("cat.jpg").label
    model.embed(["cat.jpg", "dog.jpg"])                     # features, n f
    cls.compare([run, "runs/other"])                        # a table with intervals

Libraries that take long to load are imported where they are used: ``cls.train`` and ``cls.compare`` need no torch.
"""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import yaml
from numpy.typing import NDArray

from cls import recipes
from cls.commands.fields import changed_fields
from cls.commands.sweep.local import TAIL_LINES, executable, gpu_numbers
from cls.config import Run, View, flat, from_yaml
from cls.runtime.files import new_directory
from cls.runtime.paths import expanded, writing
from cls.tracking.run_status import how_it_ended, written
from cls.validate import check

if TYPE_CHECKING:
    from torch import nn

    from cls.data.pictures import Picture
    from cls.data.sources import Rows
    from cls.evaluation.ensemble import Ensemble
    from cls.evaluation.predictions import Predictions

Place = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image."""

    image: str
    """Path, id in a table, or number in a list."""
    label: str
    """The most probable class; empty where the image could not be read."""
    probability: float
    """Softmax, averaged over the test-time views; nan where the image could not be read."""
    top: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, highest first."""
    error: str = ""
    """Why the image could not be read."""


class Model:
    """One or several trained models, as :func:`load` gives them. Calls leave the settings of the process as they were.

    Images are read in this process, without loader processes: for very many, ``cls predict`` is faster.
    """

    def __init__(self, ensemble: "Ensemble") -> None:
        self._ensemble = ensemble

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in self._ensemble.members)
        return f"<cls.Model {names}: {len(self.classes)} classes on {self._ensemble.world.device}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return self._ensemble.classes

    @property
    def run(self) -> Run:
        """The configuration; of the first one, if there are several."""
        return self._ensemble.members[0].run

    @property
    def network(self) -> "nn.Module":
        """Images b 3 h w, resized and normalised -> logits b classes; ValueError if there are several."""
        network: nn.Module = self._only("network").model
        return network

    @overload
    def predict(
        self, images: "list[Picture] | tuple[Picture, ...]", *, top_k: int = 5, views: Sequence[View] = ()
    ) -> list[Prediction]: ...

    @overload
    def predict(self, images: "Picture", *, top_k: int = 5, views: Sequence[View] = ()) -> Any: ...

    def predict(self, images: "Picture | Sequence[Picture]", *, top_k: int = 5, views: Sequence[View] = ()) -> Any:
        """Predict one image (a file, an image of Pillow, an array h w 3 of uint8), or a list, folder or table of them.

        One image gives one Prediction, all else a list, in order, with the bits of ``cls predict``. ``views``: at test
        time; empty: the recipe's. ValueError for one image that cannot be read; in a list it has an ``error``.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {top_k}")
        if isinstance(views, str) or not set(views) <= set(get_args(View)):
            raise ValueError(f"views is {views!r}: give a list of {', '.join(get_args(View))}")
        rows, single = self._rows(images)
        with self._settings():
            found = [one for part in self._ensemble.stream(rows, views) for one in _predictions(part, top_k)]
        if single and found[0].error:
            raise ValueError(f"{found[0].image}: {found[0].error}")
        return found[0] if single else found

    def embed(self, images: "Picture | Sequence[Picture]") -> NDArray[np.float32]:
        """The features before the output layer, of the plain image: f for one image, n f for a list, folder or table.

        ValueError for an image that cannot be read, and for several models.
        """
        from cls.data.readers import images_of
        from cls.evaluation.features import features_of

        rows, single = self._rows(images)
        model, pictures, found = self._only("embed"), images_of(rows), []
        with self._settings():
            for some, batch in features_of(model, pictures, range(len(rows))):
                if batch.corrupt:
                    row, reason = batch.corrupt[0]
                    raise ValueError(f"{pictures.name(row)}: {reason}")
                found.append(some.numpy())
        features = np.concatenate(found)
        return features[0] if single else features

    def _only(self, what: str) -> Any:
        members = self._ensemble.members
        if len(members) > 1:
            raise ValueError(f"{what} is of one model, and {len(members)} were loaded: load one")
        return members[0]

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Kernels and threads as in the run, so that the bits are the commands'."""
        from cls.distributed.process_settings import apply_settings, limit_threads, settings_restored

        with settings_restored():
            apply_settings(self.run.train)
            limit_threads(self.run.train, self._ensemble.world.device.type)
            yield

    def _rows(self, images: "Picture | Sequence[Picture]") -> "tuple[Rows, bool]":
        """The rows, and whether they are one image that was given as such."""
        from cls.data.pictures import load_pictures
        from cls.data.sources import is_one_image, load_images

        if isinstance(images, str | os.PathLike) and not is_one_image(os.fspath(images)):
            return load_images(os.fspath(images), self.run.data), False
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Iterator | set | frozenset):
            images = list(images)
        if not isinstance(images, list | tuple):
            return load_pictures([images]), True  # type: ignore[list-item]  # another sequence is an array
        if not images:
            raise ValueError("there is nothing to predict: the list is empty")
        return load_pictures(images), False


def load(run: Place | Sequence[Place], *more: Place, device: str = "auto") -> Model:
    """The best weights of a run directory, its best/model.safetensors or an export's; of several: their mean.

    ``device``: auto, cpu or cuda. ValueError for what is no trained model.
    """
    from cls.distributed.process_settings import settings_restored

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}: use auto, cpu or cuda")
    first = [run] if isinstance(run, str | os.PathLike) else run
    paths = [_weights(_path(path)) for path in (*first, *more)]
    with settings_restored():
        from cls.distributed.world import alone
        from cls.evaluation.ensemble import load_ensemble
        from cls.runtime.signals import StopSignal

        return Model(load_ensemble(paths, device, 0, StopSignal(), alone))


def _weights(path: str) -> str:
    """An export's folder as its file, which has all that a run directory's has."""
    file = os.path.join(path, "model.safetensors")
    return file if os.path.isfile(file) and not os.path.isdir(os.path.join(path, "best")) else path


def _predictions(part: "Predictions", top_k: int) -> list[Prediction]:
    from cls.commands.predict import NOT_FINITE, ranked

    found = []
    for row, (name, error) in enumerate(zip(part.ids, part.errors, strict=True)):
        top = tuple(ranked(part, row, top_k))
        label, probability = top[0] if top else ("", float("nan"))
        error = error or ("" if top else NOT_FINITE)
        found.append(Prediction(image=name, label=label, probability=probability, top=top, error=error))
    return found


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` has found; a notebook shows it as tables, ``print`` as their Markdown."""

    document: dict[str, Any]
    """All figures, as ``cls compare --json`` prints them."""

    def __str__(self) -> str:
        from cls.commands.compare import markdown

        return markdown(self.document)

    def _repr_markdown_(self) -> str:
        return str(self)


def compare(runs: Sequence[Place], *, baseline: Place = "", split: Literal["val", "test"] = "val") -> Comparison:
    """Runs against each other on the same images, with paired intervals; seeds of one configuration are pooled.

    ``baseline``: the run to compare the others with; empty: the first. ValueError where nothing can be compared.
    """
    from cls.evaluation import compare as evaluation

    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}: use val or test")
    paths = [_path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    return Comparison(evaluation.compare(paths, _path(baseline), split))


def train(
    recipe: str = "",
    data: Place | Mapping[str, Any] = "",
    *,
    epochs: float | None = None,
    out: Place = "",
    seed: int | None = None,
    launch: str = "",
    script: Place = "",
    **sections: Mapping[str, Any],
) -> Path:
    """Train by starting the processes of the command line, print their output, and return the run directory.

    Without a recipe it is digits, the demo. ``data`` is data.path, or a mapping of fields as the other sections are:
    ``optim={"lr": 1e-3}``. What is not given is the recipe's own, also the seed. The same ``out`` again resumes; empty:
    a new directory in runs/. ``launch``: the launcher with its options; empty: accelerate launch where there are
    several GPUs, else python. ``script``: train.py, where it is neither beside this package nor in the working
    directory. An interrupt saves a checkpoint and ends the run. ValueError for bad fields, RuntimeError for a run that
    did not finish.
    """
    given = _given(recipe, data, epochs, seed, sections)
    recipe = recipe or "digits"
    run = _configured(recipe, given | {"out": _path(out)})
    usual = "accelerate launch" if len(gpu_numbers()) > 1 else "python"
    launcher = [*shlex.split(launch or usual), _script(_path(script))]
    launcher[0] = executable(launcher)
    if not out:
        first = Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        with writing("out", first):
            run = dataclasses.replace(run, out=str(new_directory(first)))
    command = [*launcher, recipe, *changed_fields(run)]
    directory = Path(run.out)
    before, lines = written(directory / "exit.json"), deque[str](maxlen=TAIL_LINES)
    try:
        code = _follow(command, lines)
        if code:
            ended = how_it_ended(directory, before, code, lines)
            if ended.outcome == "user_error":
                raise ValueError(ended.reason)
            raise RuntimeError(f"the run in {directory} ended with {ended.outcome.replace('_', ' ')}: {ended.reason}")
    finally:
        if not out and not list((directory / "checkpoints").glob("step-*")):
            shutil.rmtree(directory, ignore_errors=True)  # no run would ever resume from it
    return directory


def _given(
    recipe: str, data: Place | Mapping[str, Any], epochs: float | None, seed: int | None, sections: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of :func:`train` by section; ValueError for those that mean nothing."""
    own = data if isinstance(data, Mapping) else {"path": data} if data else {}
    if own.get("path") and not recipe:
        raise ValueError("no recipe is named: cls.train('mlp-head', data=…); `cls recipes` lists them")
    if wrong := [name for name, value in sections.items() if not isinstance(value, Mapping)]:
        name, value = wrong[0], sections[wrong[0]]
        if owner := next((field.partition(".")[0] for field in flat(Run()) if field.endswith(f".{name}")), ""):
            raise ValueError(f"{name} is a field of {owner}: give {owner}={{{name!r}: {value!r}}}")
        raise ValueError(f"{name} is {value!r}: give its fields, such as {name}={{'name': value}}")
    given = {"data": own, **sections} | ({} if seed is None else {"seed": seed})
    if epochs is not None:
        if "epochs" in sections.get("train", {}):
            raise ValueError("epochs and train['epochs'] are the same: give one of them")
        given["train"] = {**sections.get("train", {}), "epochs": epochs}
    return given


def _configured(recipe: str, given: Mapping[str, Any]) -> Run:
    """The recipe with these fields; ValueError with the nearest name for an unknown one."""
    fields = dataclasses.asdict(recipes.get(recipe))
    for name, value in given.items():
        inner = fields.get(name)
        fields[name] = (
            inner | _plain(value) if isinstance(inner, dict) and isinstance(value, Mapping) else _plain(value)
        )
    run = expanded(from_yaml(yaml.safe_dump(fields)))
    check(run)
    return run


def _plain(value: Any) -> Any:
    """Paths, numbers of numpy and containers of them as YAML has them."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _script(path: str) -> str:
    """train.py: as given, of the checkout that this package lies in, or in the working directory."""
    if path:
        return path
    own = Path(__file__).resolve().parents[1] / "train.py"
    if not own.is_file() and not Path("train.py").is_file():
        raise ValueError(f"train.py is neither in {own.parent} nor in {Path.cwd()}: name it with script=")
    return str(own) if own.is_file() else "train.py"


def _follow(command: Sequence[str], lines: deque[str]) -> int:
    """Run a command, print its output as it comes, also into ``lines``, and return its status.

    An interrupt is passed on, and raised here once the run has saved and ended.
    """
    interrupted = False
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while process.poll() is None:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line.rstrip())
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode


def _path(path: Place) -> str:
    return os.path.expanduser(os.fspath(path))
