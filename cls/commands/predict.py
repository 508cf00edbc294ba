"""``cls predict``: one row per image as soon as it is known, then the same files as for a run's test split."""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cls.commands.options import PredictOptions, views_of
from cls.config import View
from cls.data.folders.ignored import ending, is_unread_image
from cls.data.sources import Rows, load_given, load_listed
from cls.evaluation import predictions
from cls.evaluation.ensemble import Ensemble, load_ensemble
from cls.evaluation.predictions import Predictions, joined, readable
from cls.runtime.files import Lines
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import Stopped, StopSignal

PIPE = "-"
"""As the path: a list of paths on standard input. As --out: rows on standard output."""

NOT_FINITE = "probabilities are not finite"
Writer = Callable[[Predictions], None]


def predict_images(
    runs: Sequence[str], paths: Sequence[str], options: PredictOptions, stop: StopSignal
) -> dict[str, Any] | None:
    """Predictions of images without labels, by one run or as the mean of several.

    None on other ranks than 0, and if the rows go to standard output.
    """
    out, top_k = options.out, options.top_k
    if top_k < 1:
        raise ValueError(f"--top-k must be at least 1, found {top_k}")
    if not paths:
        raise ValueError("there is nothing to predict: name images after the runs, or - for a list on standard input")
    piped = list(paths) == [PIPE]
    if PIPE in paths and not piped:
        raise ValueError("- reads a list of files from standard input: give it alone, or name the files")
    models = load_ensemble(runs, options.device, options.workers, stop)
    world, views = models.world, views_of(options.tta)
    main, data = world.main, options.in_column(models.members[0].run.data)
    names = world.on_rank_0(read_list) if piped else list(paths)
    rows = world.on_all_ranks(lambda: load_listed(names) if piped else load_given(names, data))
    if out == PIPE or (piped and not out):
        corrupt = _each(models, rows, views, _to_stdout(top_k, stop) if main else _write_nothing, stop)
        _say(f"{len(rows)} predictions{_note(models, corrupt)}", main)
        return None
    folder = Path(out) if out else _place(runs, models, _called(paths, piped))
    world.on_rank_0(lambda: _clear(folder))  # before the work: a place that cannot be written
    found: list[Predictions] = []
    corrupt = _each(models, rows, views, _to_csv(folder / "top.csv", top_k, found) if main else _write_nothing, stop)
    if not main:
        return None
    whole = joined(found)
    with writing("out", folder):
        predictions.write_csv(folder, whole, models.fallback)
        predictions.write_parquet(folder / "predictions.parquet", whole)
    note = f"{_note(models, corrupt)} and got the most frequent class" if corrupt else _note(models, corrupt)
    _say(f"{len(rows)} predictions in {folder / 'prediction.csv'}{note}", main)
    several = {"members": [member.name for member in models.members]} if len(models.members) > 1 else {}
    return {"images": len(rows), "corrupt": corrupt, "folder": str(folder)} | several


def _place(runs: Sequence[str], models: Ensemble, called: str) -> Path:
    """Inside of the directory of the run or ensemble; those of several runs are no run's own, so beside the first."""
    first, count = models.members[0].folder, len(models.members)
    if len(runs) == 1:
        return (first if count == 1 else Path(runs[0])) / f"predict-{called}"
    return Path(os.path.normpath(first / ".." / f"predict-{called}-by-{count}-runs"))


def _clear(folder: Path) -> None:
    """Make the folder and delete the files of an earlier prediction."""
    check_output("out", folder, folder=True)
    with writing("out", folder):
        if (folder / "config.yaml").exists():
            raise ValueError(f"--out {folder} is a run directory, with predictions of its own: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("top.csv", "prediction.csv", "prediction.zip", "predictions.parquet"):
            (folder / name).unlink(missing_ok=True)


def read_list() -> list[str]:
    """Paths on standard input, one per line, or each ended by NUL as ``find -print0`` writes them.

    All are read before the first batch: the composition of batches must not depend on the timing of the pipe.
    """
    if sys.stdin.isatty():
        raise ValueError("- reads a list of files from a pipe: find FOLDER -type f | cls … RUN -")
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(line) for line in lines if line]
    if not names:
        raise ValueError("standard input has no paths: one a line, as find FOLDER -type f writes them")
    return names


def ranked(p: Predictions, row: int, k: int) -> list[tuple[str, float]]:
    """The k most probable classes of an image and their probabilities, ties by class number; none if corrupt."""
    if p.errors[row] or not np.isfinite(p.probs[row]).all():
        return []
    return [(p.classes[i], float(p.probs[row, i])) for i in np.argsort(-p.probs[row], kind="stable")[:k]]


def _each(models: Ensemble, rows: Rows, views: Sequence[View], write: Writer, stop: StopSignal) -> int:
    """Write each batch as soon as it is known, in row order; returns the number of images without a prediction."""
    corrupt, done = 0, 0
    try:
        # a stop request waits for the end of a batch, on all ranks: no row is cut, no communication interrupted
        with stop.deferred("this batch"), _shown(len(rows), models.world.main) as show:
            for part in map(_kinds_named, models.stream(rows, views)):
                write(part)
                done += len(part.ids)
                corrupt += int((~readable(part)).sum())
                show(done)
    except Stopped:
        _say(f"\n{done} of {len(rows)} images were done, and their rows are written", models.world.main)
        raise
    return corrupt


def _kinds_named(part: Predictions) -> Predictions:
    """Add the remedy to the errors of image files in formats that are not read."""
    errors = [
        f"{error}: {ending(name)} is not read, convert it to JPEG or PNG" if error and is_unread_image(name) else error
        for name, error in zip(part.ids, part.errors, strict=True)
    ]
    return replace(part, errors=errors)


def _write_nothing(part: Predictions) -> None:
    """For ranks other than 0, which have the same predictions."""


def _to_stdout(top_k: int, stop: StopSignal) -> Writer:
    """One JSON object per line; requests a stop when standard output is closed (``| head``)."""

    def write(part: Predictions) -> None:
        text = []
        for row, (name, error) in enumerate(zip(part.ids, part.errors, strict=True)):
            top = ranked(part, row, top_k)
            text.append(json.dumps({
                "id": name, "predicted": top[0][0] if top else None, "error": error or ("" if top else NOT_FINITE),
                "top": [{"class": label, "probability": value} for label, value in top],
            }))  # fmt: skip
        try:
            print("\n".join(text), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stop.reason = stop.reason or "standard output was closed"

    return write


def _to_csv(path: Path, top_k: int, found: list[Predictions]) -> Writer:
    """Collect the predictions, and append their rows to a file; rows that are written survive a kill."""
    file = Lines(path)

    def add(rows: list[list[str | float]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        file.add(text.getvalue().encode())

    def write(part: Predictions) -> None:
        if not found:
            columns = range(1, min(top_k, len(part.classes)) + 1)
            add([["id", "error", *(f"{what}_{i}" for i in columns for what in ("class", "probability"))]])
        found.append(part)
        rows: list[list[str | float]] = []
        for row, (name, error) in enumerate(zip(part.ids, part.errors, strict=True)):
            top = ranked(part, row, top_k)
            rows.append([name, error or ("" if top else NOT_FINITE), *(value for pair in top for value in pair)])
        add(rows)

    return write


@contextmanager
def _shown(total: int, main: bool) -> Iterator[Callable[[int], None]]:
    """Images done, rate and time left: a bar if only standard error is a terminal, else a line every 30 seconds."""
    bar = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        auto_refresh=False,  # no thread: loader processes are forked
        redirect_stdout=False,  # --out -: the rows must not go to the terminal
        transient=True,
        disable=not main or not sys.stderr.isatty() or sys.stdout.isatty(),
    )
    task, since, last, first = bar.add_task("starting", total=total), 0.0, time.monotonic(), 0

    def show(done: int) -> None:
        nonlocal since, last, first
        now = time.monotonic()
        if not since:
            since, first = now, done  # the loader has started
        if not main or now - last < (30.0 if bar.disable else 0.2):
            return
        last, rate = now, (done - first) / max(now - since, 1e-9)
        left = f", {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        text = f"{done}/{total} images, {rate:.0f}/s{left}"
        if bar.disable:
            _say(text, main)
        else:
            bar.update(task, completed=done, description=text, refresh=True)

    with bar:
        yield show


def _called(paths: Sequence[str], piped: bool) -> str:
    if piped or len(paths) > 1:
        return "list" if piped else "files"
    path = Path(paths[0])
    return (path.name if path.is_dir() else path.stem) or "images"


def _note(models: Ensemble, corrupt: int) -> str:
    count, world_size = len(models.members), models.world.size
    mean = f", the mean of {count} runs" if count > 1 else ""
    many = f", by {world_size} processes" if world_size > 1 else ""
    return mean + many + (f"; {corrupt} could not be read" if corrupt else "")


def _say(text: str, main: bool) -> None:
    if main:
        print(text, file=sys.stderr, flush=True)
