"""Every statistic against scipy, statsmodels or a second formula, and the intervals by simulation."""

import itertools
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from pandas import DataFrame
from scipy import integrate, optimize, special, stats
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as contingency_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cls.evaluation import stats as ours
from cls.evaluation.metrics import per_class
from cls.evaluation.predictions import Predictions
from cls.evaluation.stats import (
    class_differences,
    holm,
    images_needed,
    mcnemar,
    paired_difference,
    pooled_accuracy,
    seed_variance,
    wilson,
)


@dataclass(frozen=True)
class World:
    """Networks that are right where a sum of normal variables is positive, so that every rate is known exactly.

    The image part is shared by all networks but for a tenth that is each group's own; a training seed moves all
    images of its network alike.
    """

    n: int
    seeds: tuple[int, int]
    accuracy: float
    gap: float
    seed_sd: float

    def draw(self, rng):
        """Two groups, s n."""
        spread = math.sqrt(4 + self.seed_sd**2 + 1)
        shared = math.sqrt(3.6) * rng.normal(size=self.n)
        return [
            special.ndtri(rate) * spread
            + shared
            + math.sqrt(0.4) * rng.normal(size=self.n)
            + self.seed_sd * rng.normal(size=(s, 1))
            + rng.normal(size=(s, self.n))
            > 0
            for s, rate in zip(self.seeds, (self.accuracy, self.accuracy + self.gap), strict=True)
        ]


def shares(world, pairs, seed=0):
    """Coverage of the difference, coverage of the second group's accuracy, share told apart, share with p < 0.05."""
    rng, hits = np.random.default_rng(seed), np.zeros(4)
    for _ in range(pairs):
        first, second = world.draw(rng)
        found, own = paired_difference(first, second), pooled_accuracy(second)
        hits += (
            found.low <= world.gap <= found.high,
            own.low <= world.accuracy + world.gap <= own.high,
            found.told_apart,
            found.p < 0.05,
        )
    return hits / pairs


@pytest.fixture
def fewer_resamples(monkeypatch):
    """A twentieth of the resamples, so that a thousand pairs take seconds; the ends of intervals scatter a little."""
    ours._student.cache_clear()
    monkeypatch.setattr(ours, "RESAMPLES", 500)
    yield
    ours._student.cache_clear()


def test_the_simulated_networks_have_the_rates_that_they_are_drawn_for():
    rng, world = np.random.default_rng(0), World(2000, (30, 30), 0.8, 0.05, 0.3)
    first, second = np.mean([[right.mean() for right in world.draw(rng)] for _ in range(20)], axis=0)
    assert first == pytest.approx(0.8, abs=0.01) and second == pytest.approx(0.85, abs=0.01)


@pytest.mark.parametrize(
    "world",
    [World(300, (1, 1), 0.8, 0.02, 0), World(300, (3, 3), 0.8, 0.0, 0.2)],
    ids=str,
)
def test_intervals_hold_what_they_promise(world, fewer_resamples):
    of_difference, of_accuracy, told_apart, significant = shares(world, 1000)
    assert 0.93 <= of_difference <= 0.97
    assert 0.93 <= of_accuracy <= 0.98
    assert abs(told_apart - significant) < 0.02  # verdict and p are of one mind
    if world.gap == 0:
        assert told_apart == pytest.approx(1 - of_difference) and 0.03 <= significant <= 0.07


SEEDLESS = [World(n, (1, 1), a, gap, 0) for n, a, gap in
            [(100, 0.8, 0.05), (300, 0.9, 0.0), (300, 0.95, 0.02), (1000, 0.97, 0.01), (3000, 0.9, 0.01)]]  # fmt: skip
SEEDED = [World(n, seeds, a, gap, sd) for n, seeds, a, gap, sd in [
    (300, (2, 2), 0.8, 0.02, 0.1), (300, (3, 3), 0.8, 0.0, 0.1), (300, (3, 3), 0.8, 0.02, 0.3),
    (300, (3, 3), 0.95, 0.02, 0.1),
    (300, (3, 1), 0.9, 0.02, 0.1), (300, (2, 5), 0.9, 0.02, 0.1), (300, (5, 5), 0.9, 0.02, 0.0),
    (3000, (2, 2), 0.8, 0.02, 0.1), (3000, (2, 2), 0.8, 0.02, 0.5), (3000, (3, 3), 0.8, 0.02, 0.05),
    (3000, (3, 3), 0.95, 0.01, 0.1), (1000, (3, 3), 0.95, 0.01, 0.2), (300, (10, 10), 0.9, 0.02, 0.05),
]]  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("world", SEEDLESS + SEEDED, ids=str)
def test_intervals_hold_at_many_accuracies_and_numbers_of_seeds(world, fewer_resamples):
    of_difference, of_accuracy, _, _ = shares(world, 2000, seed=1)
    assert 0.925 <= of_difference <= 0.975
    if world.seeds[1] > 1 or not world.seed_sd:  # one seed speaks of itself only
        assert 0.925 <= of_accuracy <= 0.985


def test_resampling_the_seeds_would_not_do(fewer_resamples):
    """Why seeds are not simply resampled: two of them and a large effect, and seven intervals in ten hold."""
    rng, world, hits = np.random.default_rng(0), World(1000, (2, 2), 0.8, 0.02, 0.5), np.zeros(2)
    for _ in range(200):
        first, second = world.draw(rng)
        found = paired_difference(first, second)
        sides = []
        for right in (first, second):
            rows = rng.integers(0, 2, size=(500, 2))
            sides.append(right.mean(axis=1)[rows].mean(axis=1))  # the image part is negligible beside this one
        plain = np.quantile(sides[1] - sides[0], [0.025, 0.975])
        hits += (found.low <= world.gap <= found.high, plain[0] <= world.gap <= plain[1])
    assert hits[0] / 200 > 0.91 and hits[1] / 200 < 0.8


def test_wilson_is_scipys_and_statsmodels_interval_and_takes_rates():
    for right, n in [(0, 1), (0, 40), (40, 40), (1, 40), (237, 300), (299, 300), (1500, 3000)]:
        expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert wilson(right / n, n) == pytest.approx(proportion_confint(right, n, 0.05, "wilson"), abs=1e-12)
    for rate, n in [(0.8123, 321.7), (0.02, 50.5)]:  # the score test's own definition: |rate - p| = z sqrt(p (1-p) / n)
        for end in wilson(rate, n):
            assert abs(rate - end) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(end * (1 - end) / n), abs=1e-12)
    assert wilson(0.0, 0) == (0, 1) and wilson(0, 30)[0] == 0 and wilson(1, 30)[1] == 1


def test_wilson_covers_by_the_exact_binomial_distribution():
    covered = []
    for n, rate in itertools.product((100, 300, 1000, 3000), (0.5, 0.7, 0.8, 0.9, 0.95)):
        counts = np.arange(n + 1)
        held = [low <= rate <= high for low, high in (wilson(k / n, n) for k in counts)]
        covered.append(stats.binom.pmf(counts, n, rate)[held].sum())
    assert min(covered) > 0.93 and max(covered) < 0.97
    assert np.mean(covered) == pytest.approx(0.95, abs=0.003)


def pair(both, only_first, only_second, neither):
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first[None], second[None]


@pytest.mark.parametrize("table", [(200, 20, 10, 70), (5, 0, 6, 1), (0, 1, 0, 0), (290, 5, 5, 0), (100, 0, 0, 3)])
def test_mcnemar_is_statsmodels_exact_test(table):
    both, only_first, only_second, neither = table
    expected = contingency_mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    first, second = pair(*table)
    assert mcnemar(first[0], second[0]) == pytest.approx(min(expected, 1), abs=1e-12)
    assert paired_difference(first, second).p == mcnemar(first[0], second[0])


@pytest.mark.parametrize(
    "table", [(200, 40, 20, 40), (250, 20, 25, 5), (700, 90, 120, 90), (95, 1, 4, 0), (60, 9, 20, 11)]
)
def test_the_bootstrap_of_single_runs_agrees_with_bonett_and_prices_formula(table):
    _, b, c, _ = table
    n = sum(table)
    found = paired_difference(*pair(*table))
    p12, p21 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.difference == pytest.approx((c - b) / n, abs=1e-12)
    # percentiles lie on the grid of whole images
    assert found.low == pytest.approx(p21 - p12 - half, abs=0.05 * half + 0.6 / n)
    assert found.high == pytest.approx(p21 - p12 + half, abs=0.05 * half + 0.6 / n)


def test_networks_that_never_disagree_may_still_differ_a_little():
    right = np.arange(300)[None] % 5 > 0
    found = paired_difference(right, right)
    assert (found.difference, found.p, found.images_needed) == (0, 1, math.inf)
    assert -0.01 < found.low < 0 < found.high < 0.01 and not found.told_apart


def test_a_difference_is_the_same_whoever_is_first_and_whenever_it_is_asked_for():
    first, second = World(400, (3, 2), 0.8, 0.1, 0.1).draw(np.random.default_rng(3))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there == paired_difference(first, second)
    assert back.difference == -there.difference and back.p == there.p and back.images_needed == there.images_needed
    assert back.low == pytest.approx(-there.high, abs=0.003) and back.high == pytest.approx(-there.low, abs=0.003)
    assert there.difference == pytest.approx(second.mean() - first.mean(), abs=1e-12)
    order = np.random.default_rng(0).permutation(400)
    assert paired_difference(first[:, order], second[:, order]) == there


def test_seed_variance_is_taken_from_the_two_way_analysis_of_variance():
    first, second = World(25, (3, 4), 0.7, 0.1, 0.8).draw(np.random.default_rng(2))
    between = rest = 0.0
    for right in (first, second):
        seed, image = np.indices(right.shape)
        cells = DataFrame({"right": right.ravel().astype(float), "seed": seed.ravel(), "image": image.ravel()})
        table = anova_lm(ols("right ~ C(seed) + C(image)", cells).fit())
        between += table["sum_sq"]["C(seed)"] / 25
        rest += table["mean_sq"]["Residual"] * (len(right) - 1) / 25
    assert seed_variance(first, second) == (pytest.approx((between - 5 / 7 * rest) / 5, abs=1e-12), 5)
    assert seed_variance(first[:1], second[:1]) == (0, 0)
    assert seed_variance(first[:1], second) == seed_variance(second)
    assert seed_variance(np.repeat(first[:1], 3, axis=0)) == (0, 2)


def test_a_mean_of_several_runs_varies_less_between_seeds():
    first, second = World(300, (3, 1), 0.8, 0.03, 0.2).draw(np.random.default_rng(5))
    single, mean = ours._parts(first, second), ours._parts(first, second, (1, 3))
    assert mean.of_seeds == pytest.approx(single.of_seeds / 2) and single.of_seeds > 0  # 1/3 + 1/3 of 1/3 + 1
    assert mean.of_images == single.of_images and mean.df == single.df
    wide, narrow = paired_difference(first, second), paired_difference(first, second, (1, 3))
    assert wide.low < narrow.low < narrow.difference < narrow.high < wide.high and narrow.p < wide.p
    again = class_differences(first, second, np.zeros(300, int), 1, (1, 3))
    assert again.p[0] == narrow.p


@pytest.mark.soak
@pytest.mark.parametrize(("images", "hidden", "epochs", "noise"), [(300, 16, 15, 0.0), (120, 32, 40, 0.2)])
def test_ensembles_vary_between_seeds_at_most_like_the_mean_of_their_members(images, hidden, epochs, noise):
    """240 small networks on digits: the variance beyond the chance of which images they met (analysis of variance)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    train, test = order[:images], order[images:]

    def trained(seed):
        inputs = data.data[train] / 16 + noise * np.random.default_rng(seed).normal(size=(images, 64))
        net = MLPClassifier((hidden,), max_iter=epochs, random_state=seed, learning_rate_init=0.01, batch_size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged, on purpose
            return net.fit(inputs, data.target[train]).predict_proba(data.data[test] / 16)

    def between(right):
        n, means = right.shape[1], right.mean(axis=1, keepdims=True)
        rest = ((right - means - right.mean(axis=0) + right.mean()) ** 2).sum() / (n - 1) / n
        return (((means - means.mean()) ** 2).sum() - rest) / (len(right) - 1)

    probs = np.array([trained(seed) for seed in range(240)])
    single = between((probs.argmax(axis=2) == data.target[test]).astype(float))
    for members in (2, 3, 5):
        means = probs.reshape(240 // members, members, *probs.shape[1:]).mean(axis=1)
        assert between((means.argmax(axis=2) == data.target[test]).astype(float)) < 1.3 * single / members


def test_p_with_seeds_is_the_tail_of_a_normal_plus_a_student_variable():
    first, second = World(300, (3, 3), 0.8, 0.03, 0.2).draw(np.random.default_rng(5))
    parts = ours._parts(first, second)
    assert parts.df == 4 and parts.of_seeds > 0

    def tail(t):
        normal = stats.norm(scale=math.sqrt(parts.of_images))
        return stats.t.pdf(t, 4) * normal.sf(abs(parts.difference) - math.sqrt(parts.of_seeds) * t)

    expected = 2 * integrate.quad(tail, -60, 60, limit=500)[0]
    found = paired_difference(first, second)
    assert found.p == pytest.approx(expected, rel=2e-3)
    # the interval's half width has the same tail: 2.5 % lie beyond it
    share = (np.arange(4000) + 0.5) / 4000
    noise = math.sqrt(parts.of_seeds) * stats.t.ppf(share, 4)

    def beyond(half: float) -> float:
        return float(stats.norm.sf(half - noise, scale=math.sqrt(parts.of_images)).mean() - 0.025)

    assert (found.high - found.low) / 2 == pytest.approx(optimize.brentq(beyond, 0, 1), rel=0.04)


def test_accuracy_of_one_seed_is_wilsons_and_of_equal_seeds_no_better():
    right = np.arange(300)[None] % 5 > 0
    one = pooled_accuracy(right)
    assert (one.low, one.high) == wilson(0.8, 300) and math.isnan(one.sd) and (one.seeds, one.images) == (1, 300)
    copies = pooled_accuracy(np.repeat(right, 3, axis=0))
    assert copies.sd == pytest.approx(0, abs=1e-12) and (copies.low, copies.high) == pytest.approx(
        (one.low, one.high), abs=3e-4
    )
    perfect = pooled_accuracy(np.ones((3, 50), bool))
    assert (perfect.low, perfect.high) == wilson(1.0, 50)


def test_the_mean_over_seeds_and_their_standard_deviation():
    right = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0]], bool)
    found = pooled_accuracy(right)
    assert found.mean == pytest.approx(9 / 15) and found.sd == pytest.approx(np.std([0.6, 0.8, 0.4], ddof=1))
    assert found.low < 0.6 < found.high


def test_images_needed_is_connors_formula_and_gives_the_power_it_names(fewer_resamples):
    z, reach = stats.norm.ppf([0.975, 0.8])
    rng = np.random.default_rng(0)
    for b, c in [(0.10, 0.06), (0.05, 0.02), (0.2, 0.17), (0.03, 0.01)]:
        gap, discordant = b - c, b + c
        n = images_needed(gap, discordant)
        closed = ((z * math.sqrt(discordant) + reach * math.sqrt(discordant - gap**2)) / gap) ** 2
        assert n == math.ceil(closed) and images_needed(-gap, discordant) == n
        counts = rng.multinomial(int(n), [b, c, 1 - b - c], size=20_000)
        score = np.abs(counts[:, 0] - counts[:, 1]) / np.sqrt(np.maximum(counts[:, 0] + counts[:, 1], 1))
        assert (score > z).mean() == pytest.approx(0.8, abs=0.03)  # McNemar's score test, Connor's own
        told = [paired_difference(*pair(int(n) - x - y, x, y, 0)).told_apart for x, y, _ in counts[:100]]
        assert 0.7 <= np.mean(told) <= 0.9


def test_images_needed_knows_that_images_do_not_replace_seeds():
    assert images_needed(0.0, 0.1) == math.inf
    alone = images_needed(0.02, 0.1)
    assert alone < images_needed(0.02, 0.1, 1e-5, 4) < images_needed(0.02, 0.1, 1e-5, 2) < math.inf
    assert images_needed(0.02, 0.1, 1e-4, 4) == math.inf
    student, reach = stats.t.ppf(0.975, 4), stats.norm.ppf(0.8)
    enough = (0.02 / (student + reach)) ** 2  # the seed variance at which infinitely many images are just enough
    assert images_needed(0.02, 0.1, 1.001 * enough, 4) == math.inf > images_needed(0.02, 0.1, 0.999 * enough, 4)
    n = images_needed(0.02, 0.1, 2e-5, 4)
    half = math.sqrt(1.959964**2 * 0.1 / n + student**2 * 2e-5)
    assert half + reach * math.sqrt((0.1 - 0.0004) / n + 2e-5) == pytest.approx(0.02, rel=1e-3)


def test_every_image_discordant_needs_few_images():
    assert images_needed(1.0, 1.0) == math.ceil(stats.norm.ppf(0.975) ** 2)
    third = 1 / 3  # one of three seeds right everywhere; rounding must not make a variance negative
    assert images_needed(third, third**2 * (1 - 1e-15)) == math.ceil(stats.norm.ppf(0.975) ** 2)
    for seeds in range(2, 25):
        for wins in range(1, seeds):
            assert images_needed(wins / seeds, (wins / seeds) ** 2) == math.ceil(stats.norm.ppf(0.975) ** 2)


def test_holm_is_statsmodels():
    for p in ([0.03], [0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.02], [0.2, 0.2, 0.2, 0.001]):
        assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)


def test_class_differences_are_recalls_with_benjamini_hochbergs_p():
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 2, 4], 400)  # class 3 has no image
    probs = rng.dirichlet(np.ones(5), (2, 400))
    probs[1, np.arange(400), labels] += np.where(labels == 2, 0.6, 0.05)
    first, second = (p.argmax(axis=1) == labels for p in probs)
    found = class_differences(first[None], second[None], labels, 5)
    for p, recalls in zip(probs, (found.first, found.second), strict=True):
        own = Predictions(ids=list(map(str, range(400))), labels=labels, probs=p, errors=[""] * 400,
                          classes=tuple("abcde"), loss=0.0)  # fmt: skip
        assert recalls == pytest.approx(per_class(own).recall, nan_ok=True)
        assert (found.support == per_class(own).support).all()
    expected = [mcnemar(first[labels == c], second[labels == c]) for c in (0, 1, 2, 4)]
    assert found.p[[0, 1, 2, 4]] == pytest.approx(expected) and np.isnan(found.p[3]) and np.isnan(found.adjusted[3])
    adjusted = multipletests(expected, method="fdr_bh")[1]
    assert found.adjusted[[0, 1, 2, 4]] == pytest.approx(adjusted) and found.adjusted[2] < 0.01


def test_classes_of_one_image_and_several_seeds_have_a_p():
    first, second = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    found = class_differences(first, second, np.array([0, 1, 2, 2]), 3)
    assert ((found.p > 0) & (found.p <= 1)).all() and list(found.second - found.first) == [1, 1, 1]
