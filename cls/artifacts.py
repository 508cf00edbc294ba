"""What a run leaves behind: the best weights as one file, predictions, the submission CSV and pictures."""

import json
import logging
import os
import platform
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cls import checkpoint
from cls.checks import check
from cls.config import Run, from_yaml, to_yaml
from cls.data import identity
from cls.data.access import images_of
from cls.data.feed import Feed
from cls.data.sources import Splits, labels_of
from cls.evaluate import Look
from cls.folder import Folder
from cls.journal import Journal
from cls.metrics import Predictions, summary
from cls.models import Statistics, input_statistics, load_exact
from cls.parallel.cluster import Cluster
from cls.state import State
from cls.track import Mistake

log = logging.getLogger("cls")


def keep_data(folder: Folder, splits: Splits, cluster: Cluster) -> None:
    """Write classes.txt, data.json and sizes.npz at the first start; at a later one, other images are a ValueError.

    Images are known by id and label, which image a draw is hangs on them, and by their sizes in bytes. They must be the
    same on all ranks, which may read them from disks of their own: one process of each node looks at the files.
    """
    looks = os.environ.get("LOCAL_RANK", "0") == "0"
    seen = cluster.together(lambda: identity.look(splits, contents=looks))
    everywhere = cluster.gather((platform.node(), seen.facts))
    other = next((host for host, facts in everywhere if not identity.same_everywhere(everywhere[0][1], facts)), None)
    if other is not None:
        raise ValueError(
            f"data.path: {folder.run.data.path} holds other images on {other} than on {everywhere[0][0]}: make them "
            "the same, or delete the older copy"
        )
    cluster.on_main(lambda: _keep(folder, seen))


def _keep(folder: Folder, seen: identity.Seen) -> None:
    out = folder.path
    if not (out / "data.json").exists():
        identity.keep(out, seen)
        return
    classes = identity.stored_classes(out / "classes.txt", seen.splits.classes)
    if what := identity.drift(out, seen, classes):
        raise ValueError(
            f"data.path: {folder.run.data.path} is not what {out} was started with ({what}): use another --out"
        )
    identity.complete(out, seen)


def fallback_class(splits: Splits) -> int:
    """The most frequent training class: the prediction for an image that cannot be read."""
    return int(np.bincount(labels_of(splits.train)).argmax())


def best_header(run: Run, splits: Splits) -> dict[str, str]:
    """All that prediction needs besides the weights."""
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


def write_results(
    folder: Folder, state: State, splits: Splits, feed: Feed, look: Look, cluster: Cluster, journal: Journal
) -> str:
    """Predict validation and test with the best weights, write all files, and give the run's last line."""
    from cls import report  # matplotlib: 0.6 s that only the end of a run has to pay

    out, fallback = folder.path, fallback_class(splits)
    cluster.clock.turn("evaluation")
    best = out / "best" / "model.safetensors"
    written = cluster.on_main(lambda: checkpoint.sha256(best))
    cluster.together(lambda: checkpoint.await_file(best, lambda: checkpoint.sha256(best) == written))
    cluster.together(lambda: load_exact(state.evaluated, best))
    val = look(state.evaluated, feed.val)
    figures = {f"best/{name}": value for name, value in summary(val).items()}
    text = f"best validation accuracy {figures['best/accuracy']:.4f}"
    views = look(state.evaluated, feed.val_tta) if feed.val_tta else None
    if views is not None:
        figures["best/accuracy_tta"] = summary(views)["accuracy"]
        text += f", with test-time views {figures['best/accuracy_tta']:.4f}"
    test = look(state.evaluated, feed.test) if feed.test else None
    if not cluster.main:
        return text
    (out / "predictions").mkdir(exist_ok=True)
    report.write_parquet(out / "predictions" / "val.parquet", val)
    if views is not None:
        report.write_parquet(out / "predictions" / "val_tta.parquet", views)
    if test is not None:
        report.write_parquet(out / "predictions" / "test.parquet", test)
        report.write_csv(out, test, fallback)
        text += f"; {len(test.ids)} test predictions in {out / 'prediction.csv'}"
        if (test.labels >= 0).any():
            figures["test/accuracy"] = summary(test)["accuracy"]
            text += f" (accuracy {figures['test/accuracy']:.4f})"
    pictures = report.write_report(out, val, journal.rows())
    text += f"; pictures: {', '.join(path.name for path in pictures.values())} in {out}"
    journal.results()
    text, mistakes = _write_page(out, splits, val, text)
    journal.result(text, figures, pictures, mistakes)
    return text


def _write_page(out: Path, splits: Splits, val: Predictions, text: str) -> tuple[str, list[Mistake]]:
    """The run's last line with report.html in it, and the images that are wrong.

    No fault of a page may make a failure of a finished training.
    """
    try:
        from cls import page  # as the pictures

        thumbs = page.thumbnails(images_of(splits.val), val)
        page.write_page(page.read_material(out), page.Pictures(thumbs=thumbs), out / "report.html")
        return f"{text}; all of it: {out / 'report.html'}", page.mistakes(val, thumbs)
    except Exception as error:
        log.warning("report.html was not written (%s: %s); try: cls report %s", type(error).__name__, error, out)
        return text, []
