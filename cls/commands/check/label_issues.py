"""Labels that a model confidently contradicts."""

from typing import Any

import numpy as np

from cls.evaluation.predictions import Predictions, readable

MARGIN = 0.5  # the predicted class is at least this much more probable than the label: an unsure model doubts nothing


def label_issues(p: Predictions) -> list[dict[str, Any]]:
    """Images whose predicted class is more probable than their label by MARGIN or more; the widest margin first.

    The ranking is that by normalised margin of confident learning (Northcutt, Jiang & Chuang 2021, section 3.2). Its
    thresholds, a class's mean probability, are not used: half of the wrong labels of a class lie below them.
    """
    rows = np.flatnonzero((p.labels >= 0) & readable(p))
    labels, predicted = p.labels[rows], p.probs[rows].argmax(1)
    margins = p.probs[rows, predicted] - p.probs[rows, labels]
    return [
        {
            "id": p.ids[rows[i]],
            "row": int(rows[i]),
            "label": p.classes[labels[i]],
            "predicted": p.classes[predicted[i]],
            "label_prob": round(float(p.probs[rows[i], labels[i]]), 4),
            "predicted_prob": round(float(p.probs[rows[i], predicted[i]]), 4),
        }
        for i in np.argsort(-margins, kind="stable").tolist()
        if margins[i] >= MARGIN
    ]
