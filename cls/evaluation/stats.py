"""Confidence intervals of accuracies, paired tests of their differences, sample sizes.

Everything takes ``right``, one row per training seed and one column per image: True where that seed's network gives
the image its label. All seeds of all groups saw the same images. Letters of the shapes: s seeds, n images, c classes.

Two things are random: the images are a sample, and so are the training seeds. ``images i, seeds s`` are crossed,
``right[s, i] = mean + image_i + seed_s + rest_si``, which is the "multi-reader multi-case" design of radiology
(Gallas et al. 2009, Acad. Radiol. 16: 'biases with the bootstrap and other variance estimators').
What is estimated is the mean over images *and* seeds. One seed alone says nothing about others, so the intervals of
single runs are about those networks only.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from cls.evaluation.predictions import Floats, Ints
from cls.runtime.rng import generator

Bools = NDArray[np.bool_]

LEVEL = 0.95
"""Confidence of every interval."""
POWER = 0.8
"""The power of the test that :func:`images_needed` plans for."""
RESAMPLES = 10_000
Z = float(special.ndtri((1 + LEVEL) / 2))


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Score interval of an accuracy of ``rate`` over n images (Wilson 1927, J. Am. Stat. Assoc. 22).

    Neither needs to be a count: a mean over seeds comes with its effective number of images. (0, 1) where n is 0.
    """
    assert 0 <= rate <= 1 and n >= 0, f"rate {rate} over {n} images"
    if n == 0:
        return 0.0, 1.0
    center = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * np.sqrt(rate * (1 - rate) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)
    # at 0 and 1 the formula gives exactly that bound, but for rounding
    low = 0.0 if rate == 0 else max(float(center - half), 0.0)
    return low, 1.0 if rate == 1 else min(float(center + half), 1.0)


def mean_interval(values: Floats, level: float) -> tuple[float, float, float]:
    """The mean of n values and the bounds of its Student t interval."""
    mean, n = float(values.mean()), len(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(values.std(ddof=1)) / np.sqrt(n)
    return mean, mean - half, mean + half


def mcnemar(first: Bools, second: Bools) -> float:
    """Exact two-sided p of McNemar's test that two networks (n each) are right equally often.

    Of the images that only one of the two gets right, each has either half of them: a binomial test. 1 without any.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def seed_variance(*groups: Bools) -> tuple[float, int]:
    """Variance of the accuracy between training seeds (beyond the chance of which images they met), and its degrees
    of freedom; pooled over ``groups`` of shape s n, so a group of one seed borrows it. (0, 0) where all have one seed.

    The variance of the accuracies contains the share ``rest / n`` that finitely many images leave; the two-way analysis
    of variance estimates it. Subtracting all of it and cutting at zero makes intervals too short with two or three
    seeds (92 % measured), subtracting nothing makes them too long without a seed effect (98 %). df / (df + 2) of it is
    subtracted: chosen by simulation (test_stats.py), not by theory. Both groups are assumed to vary equally.
    """
    several = [right.astype(np.float64) for right in groups if len(right) > 1]
    df = sum(len(right) - 1 for right in several)
    if not df:
        return 0.0, 0
    between = rest = 0.0
    for right in several:
        n = right.shape[1]
        accuracies = right.mean(axis=1, keepdims=True)  # s 1
        between += float(((accuracies - accuracies.mean()) ** 2).sum())
        residual = right - accuracies - right.mean(axis=0) + accuracies.mean()  # s n
        rest += float((residual**2).sum()) / max(n - 1, 1) / n
    return max(between - df / (df + 2) * rest, 0.0) / df, df


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracy of one run, or the mean over the seeds of a group."""

    mean: float
    low: float
    high: float
    sd: float
    """Standard deviation between seeds (divisor s - 1); nan for one seed."""
    seeds: int
    images: int


def pooled_accuracy(right: Bools) -> Accuracy:
    """Mean over seeds and images of ``right`` (s n) with a Wilson interval.

    One seed: the plain interval. Several: n is replaced by the number of independent images that would leave the same
    uncertainty (Korn & Graubard 1998, Surv. Methodol. 24), which has a part from images and, by Student's t with s - 1
    degrees of freedom, one from seeds.
    """
    s, n = right.shape
    mean, effective = float(right.mean()), float(n)
    if s > 1 and n > 1 and 0 < mean < 1:
        between, df = seed_variance(right)
        of_images = float(right.mean(axis=0).var(ddof=1)) / n
        variance = of_images + between / s * (float(special.stdtrit(df, (1 + LEVEL) / 2)) / Z) ** 2
        effective = mean * (1 - mean) / max(variance, mean * (1 - mean) / (s * n))  # s n answers are no more than that
    low, high = wilson(mean, effective)
    sd = float(right.mean(axis=1).std(ddof=1)) if s > 1 else float("nan")
    return Accuracy(mean=mean, low=low, high=high, sd=sd, seeds=s, images=n)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an observed difference of accuracies is made of."""

    difference: float
    """Mean over seeds and images, second minus first."""
    discordant: float
    """Mean square of an image's difference; between two single runs the share that only one of them gets right."""
    values: Floats
    """The images' differences that occur, and one imaginary image for each side."""
    counts: Ints
    """How often each of them occurs."""
    of_images: float
    """Variance of the difference due to the images (the imaginary ones included)."""
    of_seeds: float
    """Variance of the difference due to the seeds."""
    df: int
    """Degrees of freedom of that; 0: single runs."""


def _parts(first: Bools, second: Bools, runs: tuple[int, int] = (1, 1)) -> Parts:
    assert first.shape[1] == second.shape[1] > 0, f"images disagree: {first.shape} and {second.shape}"
    each = np.round(second.mean(axis=0) - first.mean(axis=0), 12)  # n; equal ones must be equal in every bit
    halves = 1 / len(first) + 1 / len(second)
    # Bonett & Price 2012: with few discordant images (none!) the observed variance is far too small
    imaginary = np.sqrt(halves / 2)
    values, counts = np.unique(np.append(each, [imaginary, -imaginary]), return_counts=True)
    total = counts.sum()
    center = float(values @ counts) / total
    between, df = seed_variance(first, second)
    return Parts(
        difference=float(each.mean().round(12)),  # 0, not 1e-17, where it is none
        discordant=float((each**2).mean()),
        values=values,
        counts=counts,
        of_images=float((values - center) ** 2 @ counts) / total**2,
        of_seeds=between * (1 / (len(first) * runs[0]) + 1 / (len(second) * runs[1])),
        df=df,
    )


@cache
def _student(df: int) -> Floats:
    """Student's t as its quantiles at equal steps: as many random draws would scatter in the far tails that count."""
    quantiles: Floats = special.stdtrit(df, (np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    return quantiles


def _p(first: Bools, second: Bools, parts: Parts) -> float:
    """Two-sided p: McNemar's for single runs, else that of a normal image part plus a Student's t seed part."""
    if not parts.df:
        return mcnemar(first[0], second[0])
    noise = np.sqrt(parts.of_seeds) * _student(parts.df)
    return float(min(2 * special.ndtr((noise - abs(parts.difference)) / np.sqrt(parts.of_images)).mean(), 1.0))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference of two accuracies on the same images, second minus first."""

    difference: float
    low: float
    high: float
    p: float
    """Exact McNemar for two single runs, else of the same model as the interval."""
    images_needed: float
    """Images at which this difference would be detected with 80 % chance; inf: none would be enough."""

    @property
    def told_apart(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(first: Bools, second: Bools, runs: tuple[int, int] = (1, 1)) -> Difference:
    """Difference of the accuracies of two groups of seeds (s n and s' n) on the same images, with a bootstrap interval.

    Images are resampled with replacement, whole columns at once, so that what the groups share cancels (paired).
    One imaginary image is added for each side (Bonett & Price 2012, J. Educ. Behav. Stat. 37), without which the
    bootstrap covers only 89 % at 100 images and 97 % accuracy, and says "0 to 0" where the networks never disagree.

    Seeds: resampling rows as well (the crossed, or pigeonhole, bootstrap: Owen 2007, Ann. Appl. Stat. 1) counts the
    rest several times and knows only the two or three seeds there are: its 95 % interval covered 99 % of 600 simulated
    pairs without a seed effect, 84 % at two seeds and a middling one, 69 % at a large one. No resampling fixes that
    (McCullagh 2000, Bernoulli 6). Each resample of the images gets instead a seed effect drawn from Student's t with
    s + s' - 2 degrees of freedom, scaled by :func:`seed_variance`. That covers 93 to 97 % (test_stats.py), 98 %
    where fewer than about ten images differ, 92 % at two seeds against one with a large effect.
    Equal seeds of both groups are taken as independent. The result is a function of the data alone.

    ``runs``: the members of each row, where it is an ensemble. Its accuracy is taken to vary between seeds like the
    mean of so many single ones. Measured: 0.1 to 1.25 times that variance, ensembles of 2, 3 and 5 of 240 small
    networks on digits in four settings (2026-11-29; test_stats.py repeats two of them).
    """
    parts = _parts(first, second, runs)
    rng = generator(0, "paired difference")
    total = parts.counts.sum()
    drawn = rng.multinomial(total, parts.counts / total, size=RESAMPLES) @ parts.values / total
    if parts.df:
        drawn = drawn + np.sqrt(parts.of_seeds) * rng.permutation(_student(parts.df))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        difference=parts.difference,
        low=float(low),
        high=float(high),
        p=_p(first, second, parts),
        images_needed=images_needed(parts.difference, parts.discordant, parts.of_seeds, parts.df),
    )


def images_needed(difference: float, discordant: float, of_seeds: float = 0.0, df: int = 0) -> float:
    """Images on which a difference would be detected with 80 % chance if the observed one is the true one.

    Connor 1987, Biometrics 43, for paired proportions: the n at which ``|difference| = z sqrt(discordant / n) +
    z' sqrt((discordant - difference²) / n)`` with z = 1.96, z' = 0.84. A seed part of the variance does not shrink with
    more images: it adds under both roots, its first z taken from Student's t. inf where it alone is too large.
    """
    gap = abs(difference)
    student = float(special.stdtrit(df, (1 + LEVEL) / 2)) if df else Z
    reach = float(special.ndtri(POWER))

    def lacking(inverse: float) -> float:
        alone = np.sqrt(Z**2 * discordant * inverse + student**2 * of_seeds)
        return float(alone + reach * np.sqrt(max(discordant - gap**2, 0.0) * inverse + of_seeds) - gap)

    if gap == 0 or lacking(0.0) >= 0:
        return float("inf")
    # already the first root reaches the gap there; in floating point a hair beyond it
    upper = gap**2 / (Z**2 * discordant) * (1 + 1e-9)
    return float(np.ceil(1 / optimize.brentq(lacking, 0.0, upper, xtol=1e-15)))


@dataclass(frozen=True, kw_only=True)
class ClassDifferences:
    """One figure per class, each of shape c; nan for a class without images."""

    support: Ints
    first: Floats
    """Recall of the first group, mean over its seeds."""
    second: Floats
    p: Floats
    """Of the class alone, as of :class:`Difference`."""
    adjusted: Floats
    """p after Benjamini & Hochberg 1995: among the classes with adjusted p ≤ q, a share of q is expected to be chance.
    Classes are many and looked at for hints; Holm's rule would find nothing among hundreds."""


def class_differences(
    first: Bools, second: Bools, labels: Ints, classes: int, runs: tuple[int, int] = (1, 1)
) -> ClassDifferences:
    """Recall of every class in both groups (s n and s' n), and whether it differs; ``labels`` n in 0..classes-1.

    ``runs`` as of :func:`paired_difference`.
    """
    support = np.bincount(labels, minlength=classes)
    recalls, p = np.full((2, classes), np.nan), np.full(classes, np.nan)
    for label in np.flatnonzero(support):
        mine, other = first[:, labels == label], second[:, labels == label]
        recalls[:, label] = mine.mean(), other.mean()
        p[label] = _p(mine, other, _parts(mine, other, runs))
    adjusted = p.copy()
    adjusted[support > 0] = stats.false_discovery_control(p[support > 0])
    return ClassDifferences(support=support, first=recalls[0], second=recalls[1], p=p, adjusted=adjusted)


def holm(p: Floats) -> Floats:
    """p of several comparisons, adjusted so that the chance of any false one stays below the level (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(stepped, 1.0)
    return out
