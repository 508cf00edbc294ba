"""Metrics of the predictions on one set of images.

A *corrupt* image is one that could not be read, or whose probabilities are not finite: it has no prediction, counts as
wrong everywhere, and is no class's false positive. Images without a label are left out of every figure.
Letters of the shapes: n images, c classes.
"""

from dataclasses import dataclass

import numpy as np

from cls.evaluation.predictions import Floats, Ints, Predictions, readable


def top_k(p: Predictions, k: int) -> float:
    """Share of labelled images whose true class is among the k most probable; nan without labels.

    Equal probabilities rank by class number, so k = 1 is the accuracy; k above c is c.
    """
    assert k >= 1, f"top-{k}"
    rows = np.flatnonzero(p.labels >= 0)
    if not len(rows):
        return float("nan")
    probs, labels = p.probs[rows], p.labels[rows, None]  # n c, n 1
    own = np.take_along_axis(probs, labels, axis=1)  # n 1
    ahead = (probs > own) | ((probs == own) & (np.arange(len(p.classes)) < labels))  # n c
    hit = (ahead.sum(axis=1) < k) & readable(p)[rows]
    return float(hit.mean())


def accuracy(p: Predictions) -> float:
    """Share of labelled images whose most probable class is the true one; nan without labels."""
    return top_k(p, 1)


def confusion(p: Predictions) -> Ints:
    """c c counts, rows true, columns predicted; corrupt images have no column and are left out."""
    c = len(p.classes)
    rows = (p.labels >= 0) & readable(p)
    cells = p.labels[rows] * c + p.probs[rows].argmax(axis=1)
    return np.bincount(cells, minlength=c * c).reshape(c, c)


@dataclass(frozen=True, kw_only=True)
class PerClass:
    """One figure per class, each of shape c."""

    support: Ints
    """Labelled images of the class, corrupt ones included."""
    precision: Floats
    """Right among those predicted as the class; 0 when it is never predicted."""
    recall: Floats
    """Right among the support; nan without support."""
    f1: Floats
    """Harmonic mean of both, 2 right / (predicted + support); nan without support."""


def per_class(p: Predictions) -> PerClass:
    """Support, precision, recall and F1 of every class."""
    counts = confusion(p)
    right, guessed = counts.diagonal(), counts.sum(axis=0)
    support = np.bincount(p.labels[p.labels >= 0], minlength=len(p.classes))
    present = np.where(support > 0, support, np.nan)  # nan: a class that is not there has no recall
    return PerClass(
        support=support,
        precision=right / np.maximum(guessed, 1),
        recall=right / present,
        f1=2 * right / (guessed + present),
    )


def wrong(p: Predictions) -> Ints:
    """Rows of the labelled images that have a prediction and a wrong one, the most confident first."""
    rows = np.flatnonzero((p.labels >= 0) & readable(p) & (p.probs.argmax(axis=1) != p.labels))
    return rows[np.argsort(-p.probs[rows].max(axis=1, initial=0.0), kind="stable")]


BINS = 15
"""Of the calibration error; Guo et al. 2017 use as many."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Images by their confidence, the largest probability; one figure per bin, each of shape BINS."""

    images: Ints
    confidence: Floats
    """Mean confidence; nan where there is no image."""
    accuracy: Floats
    """Share that is right; nan where there is no image."""
    error: float
    """The expected calibration error; nan without images."""


def calibration(p: Predictions) -> Calibration:
    """Whether images predicted with confidence x are right in a share x of cases.

    Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3): bin m of M holds the confidences in
    ((m - 1)/M, m/M]; ECE = sum over bins of images in it / all images * |accuracy - mean confidence|.
    Corrupt and unlabelled images are left out.
    """
    rows = (p.labels >= 0) & readable(p)
    confidence = p.probs[rows].max(axis=1, initial=0.0)
    right = p.probs[rows].argmax(axis=1) == p.labels[rows]
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    present = np.where(images > 0, images, np.nan)  # nan: an empty bin has no mean
    means = np.bincount(bins, confidence, BINS) / present
    shares = np.bincount(bins, right, BINS) / present
    error = float(np.nansum(images * np.abs(shares - means)) / len(bins)) if len(bins) else float("nan")
    return Calibration(images=images, confidence=means, accuracy=shares, error=error)


def macro_f1(p: Predictions) -> float:
    """Mean F1 over the classes that occur among the labels (scikit-learn's macro average with those as ``labels``).

    A class that does not occur has no F1 of its own; images wrongly given to it still cost their true class recall.
    """
    scores = per_class(p).f1
    present = ~np.isnan(scores)
    return float(scores[present].mean()) if present.any() else float("nan")


def log_loss(p: Predictions) -> float:
    """Mean of -log(probability of the true class) over the labelled images that can be read; nan without any."""
    rows = [row for row, label in enumerate(p.labels.tolist()) if label >= 0 and not p.errors[row]]
    with np.errstate(divide="ignore"):  # a probability of 0 has an infinite loss
        losses = -np.log(p.probs[rows, p.labels[rows]])
    return float(sum(losses.tolist()) / len(rows)) if rows else float("nan")


def summary(p: Predictions) -> dict[str, float]:
    """The figures that go to the log: accuracy, top5, macro_f1, loss, images, corrupt."""
    return {
        "accuracy": accuracy(p),
        "top5": top_k(p, 5),
        "macro_f1": macro_f1(p),
        "loss": p.loss,
        "images": len(p.ids),
        "corrupt": int((~readable(p)).sum()),
    }
