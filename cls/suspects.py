"""Labels that a model confidently contradicts."""

from typing import NamedTuple

import numpy as np

from cls.metrics import Predictions, readable

LEAST, MOST = 0.5, 0.9  # who is sure of nothing contradicts nobody; nobody must be surer than this to be heard


class Suspect(NamedTuple):
    row: int
    label: int
    predicted: int
    label_prob: float
    predicted_prob: float


def suspects(p: Predictions) -> list[Suspect]:
    """Images given to another class at least as surely as that class's own images are; the clearest first.

    Confident learning (Northcutt, Jiang & Chuang 2021, equation 2): a class's threshold is the mean probability that
    its labelled images get for it, kept within LEAST and MOST: images it was trained on get nearly 1.
    """
    rows = np.flatnonzero((p.labels >= 0) & readable(p))
    if not len(rows):
        return []
    probs, labels = p.probs[rows], p.labels[rows]  # n c, n
    own = probs[np.arange(len(rows)), labels]
    counts = np.bincount(labels, minlength=len(p.classes))
    means = np.bincount(labels, own, minlength=len(p.classes)) / np.maximum(counts, 1)
    threshold = np.where(counts > 0, np.clip(means, LEAST, MOST), np.inf)
    sure = np.where(probs >= threshold, probs, -1.0)
    best = sure.argmax(1)
    top = sure.max(1)
    found = [
        Suspect(int(rows[i]), int(labels[i]), int(best[i]), float(own[i]), float(top[i]))
        for i in np.flatnonzero((top > 0) & (best != labels))
    ]
    return sorted(found, key=lambda one: (one.label_prob - one.predicted_prob, one.row))
