import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from cls.evaluation.metrics import accuracy, calibration, confusion, macro_f1, per_class, summary, top_k, wrong
from cls.evaluation.predictions import Predictions, predicted


def make(labels, probs, errors=None, loss=0.5):
    labels, probs = np.array(labels, dtype=np.int64), np.array(probs, dtype=np.float64)
    return Predictions(
        ids=[f"{i}.jpg" for i in range(len(labels))],
        labels=labels,
        probs=probs,
        errors=errors or [""] * len(labels),
        classes=tuple(f"class {i}" for i in range(probs.shape[1])),
        loss=loss,
    )


def drawn(seed, n=300, c=7, absent=(), broken=0, unlabelled=0):
    """Random predictions that are right more often than chance."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([i for i in range(c) if i not in absent], n)
    logits = rng.normal(size=(n, c))
    logits[np.arange(n), labels] += 1.0
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    errors = [""] * n
    for row in rng.choice(n, broken, replace=False):
        probs[row], errors[row] = 0.0, "truncated"
    labels[rng.choice(n, unlabelled, replace=False)] = -1
    return make(labels, probs, errors)


def test_by_hand():
    #            right            wrong            right            broken (argmax of zeros is its own class 0)
    p = make([0, 0, 1, 0], [[0.9, 0.1, 0], [0.2, 0.5, 0.3], [0, 1, 0], [0, 0, 0]], ["", "", "", "empty file"])
    assert accuracy(p) == 0.5
    assert top_k(p, 2) == 0.5  # class 0 is third in row 1, and zeros are never a guess
    assert top_k(p, 3) == top_k(p, 99) == 0.75
    assert confusion(p).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert predicted(p, 2).tolist() == [0, 1, 1, 2]
    figures = per_class(p)
    assert figures.support.tolist() == [3, 1, 0]
    assert figures.precision.tolist() == [1.0, 0.5, 0.0]
    np.testing.assert_array_equal(figures.recall, [1 / 3, 1.0, np.nan])
    np.testing.assert_allclose(figures.f1, [0.5, 2 / 3, np.nan])
    assert macro_f1(p) == pytest.approx((0.5 + 2 / 3) / 2)
    assert summary(p) == {
        "accuracy": 0.5, "top5": 0.75, "macro_f1": macro_f1(p), "loss": 0.5, "images": 4, "corrupt": 1,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_against_sklearn(seed):
    p = drawn(seed, absent=(2, 5), broken=12, unlabelled=20)
    rows = p.labels >= 0
    truth = p.labels[rows]
    nobody = len(p.classes)  # a broken image is given a class that does not exist
    guess = np.array([nobody if e else row.argmax() for row, e in zip(p.probs, p.errors, strict=True)])[rows]
    present = sorted(set(truth.tolist()))
    assert len(present) == 5
    assert 0 < (guess == nobody).sum() <= 12
    assert np.isin(guess, [2, 5]).any()  # absent classes are predicted, and still not averaged
    assert accuracy(p) == accuracy_score(truth, guess)
    assert macro_f1(p) == pytest.approx(f1_score(truth, guess, labels=present, average="macro"), abs=1e-15)
    figures = per_class(p)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=present, zero_division=0)
    np.testing.assert_allclose(figures.precision[present], precision, atol=1e-15)
    np.testing.assert_allclose(figures.recall[present], recall, atol=1e-15)
    np.testing.assert_allclose(figures.f1[present], f1, atol=1e-15)
    assert figures.support[present].tolist() == support.tolist()
    assert np.isnan(figures.recall[[2, 5]]).all() and np.isnan(figures.f1[[2, 5]]).all()
    np.testing.assert_array_equal(
        confusion(p), confusion_matrix(truth, guess, labels=range(nobody + 1))[:nobody, :nobody]
    )


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_against_sklearn(k):
    p = drawn(7)
    assert top_k(p, k) == top_k_accuracy_score(p.labels, p.probs, k=k, labels=range(7))


def test_top_1_is_argmax_even_with_ties():
    rng = np.random.default_rng(0)
    p = make(rng.integers(0, 4, 500), rng.integers(0, 3, (500, 4)))  # many equal values
    assert accuracy(p) == (p.probs.argmax(axis=1) == p.labels).mean()
    assert top_k(p, 4) == 1.0


def test_not_finite_is_never_right():
    p = make([0, 1, 0], [[np.nan, np.nan], [np.nan, 1.0], [1.0, 0.0]])
    assert accuracy(p) == top_k(p, 2) == pytest.approx(1 / 3)
    assert predicted(p, 1).tolist() == [1, 1, 0]
    assert confusion(p).sum() == 1
    assert summary(p)["corrupt"] == 2


def test_unlabelled():
    p = drawn(1, n=50, unlabelled=50)
    assert math.isnan(accuracy(p)) and math.isnan(top_k(p, 5)) and math.isnan(macro_f1(p))
    assert confusion(p).sum() == 0
    assert (predicted(p, 0) == p.probs.argmax(axis=1)).all()
    empty = make(np.zeros(0), np.zeros((0, 3)))
    assert math.isnan(accuracy(empty)) and summary(empty)["images"] == 0
    # rows without a label change nothing
    q = drawn(2, n=60)
    half = replace(q, labels=np.where(np.arange(60) < 30, q.labels, -1))
    only = make(q.labels[:30], q.probs[:30])
    assert accuracy(half) == accuracy(only) and macro_f1(half) == macro_f1(only) and top_k(half, 3) == top_k(only, 3)


def test_rows_must_agree():
    with pytest.raises(AssertionError, match="rows disagree"):
        make([0, 1], [[1, 0], [0, 1]], ["", "", ""])
    with pytest.raises(AssertionError, match="labels outside"):
        make([0, 2], [[1, 0], [0, 1]])


@pytest.mark.parametrize("seed", range(3))
def test_calibration_by_its_formula(seed):
    """Guo et al. 2017, equations 2 and 3, image by image."""
    p = drawn(seed, broken=20, unlabelled=30)
    kept = [i for i in range(300) if p.labels[i] >= 0 and not p.errors[i]]
    total, found = 0.0, calibration(p)
    for m in range(1, 16):
        bin_ = [i for i in kept if (m - 1) / 15 < p.probs[i].max() <= m / 15]
        assert found.images[m - 1] == len(bin_)
        if bin_:
            right = sum(p.probs[i].argmax() == p.labels[i] for i in bin_) / len(bin_)
            sure = sum(p.probs[i].max() for i in bin_) / len(bin_)
            assert (found.accuracy[m - 1], found.confidence[m - 1]) == (pytest.approx(right), pytest.approx(sure))
            total += len(bin_) / len(kept) * abs(right - sure)
        else:
            assert np.isnan(found.accuracy[m - 1])
    assert found.error == pytest.approx(total) and 0.01 < total < 0.5


def test_calibration_at_the_ends():
    sure = make([0, 1], [[1, 0], [1, 0]])  # certain, and right half of the time
    assert calibration(sure).error == 0.5 and calibration(sure).images[-1] == 2
    assert np.isnan(calibration(make([-1], [[0.5, 0.5]])).error)


def test_wrong_images_by_confidence():
    p = make([0, 0, 1, -1, 1, 0], [[0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [1, 0], [0.7, 0.3], [0, 0]], [""] * 5 + ["cut"])
    assert wrong(p).tolist() == [1, 4, 0]
    assert wrong(make([0], [[1, 0]])).tolist() == []
