"""Labels that a model confidently contradicts."""

from typing import NamedTuple

import numpy as np

from cls.evaluation.predictions import Predictions, readable

MARGIN = 0.5  # the predicted class is at least this much more probable than the label: an unsure model doubts nothing


class LabelIssue(NamedTuple):
    row: int
    label: int
    predicted: int
    label_prob: float
    predicted_prob: float


def label_issues(p: Predictions) -> list[LabelIssue]:
    """Images whose predicted class is more probable than their label by MARGIN or more; the widest margin first.

    The ranking is that by normalised margin of confident learning (Northcutt, Jiang & Chuang 2021, section 3.2). Its
    thresholds, a class's mean probability, are not used: half of the wrong labels of a class lie below them.
    """
    best, found = p.probs.argmax(1).tolist() if len(p.ids) else [], []
    for row in np.flatnonzero((p.labels >= 0) & readable(p)).tolist():
        label = int(p.labels[row])
        one = LabelIssue(row, label, best[row], float(p.probs[row, label]), float(p.probs[row, best[row]]))
        if one.predicted_prob - one.label_prob >= MARGIN:
            found.append(one)
    return sorted(found, key=lambda one: (one.label_prob - one.predicted_prob, one.row))
