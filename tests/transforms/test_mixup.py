"""Mixing and losses against hand-written formulas, torch's own losses, and the distributions of the papers."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cls.config import Augment
from cls.models.loss import class_weights, loss_per_image, right_per_image
from cls.transforms.mixup import NOT_MIXED, Mixing, cutmix_box, draw_mixing, mix, partners, soft_targets

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close_to(share: float, count: int, p: float) -> bool:
    """Within five standard deviations of a binomial share."""
    return abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5


def images_and_targets(b: int = 5, c: int = 4, side: int = 9) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, c, (b,), generator=rng)
    return torch.randn(b, 3, side, side + 2, generator=rng), soft_targets(labels, c, 0.1)


# --- what a step does ---


def test_off_is_never_mixed() -> None:
    assert {draw_mixing(Augment(), 0, step) for step in range(50)} == {NOT_MIXED}
    assert {draw_mixing(Augment(mixup=0.4, mix_probability=0.0), 0, step) for step in range(50)} == {NOT_MIXED}


def test_at_probability_one_every_step_is_mixed() -> None:
    assert {draw_mixing(Augment(mixup=0.2), 0, step).kind for step in range(2000)} == {"mixup"}
    assert {draw_mixing(Augment(cutmix=1.0), 0, step).kind for step in range(2000)} == {"cutmix"}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_coin_has_its_probability(p: float) -> None:
    mixed = [draw_mixing(Augment(mixup=0.2, mix_probability=p), 0, step).kind == "mixup" for step in range(4000)]
    assert close_to(np.mean(mixed), 4000, p)
    assert abs(np.corrcoef(mixed[1:], mixed[:-1])[0, 1]) < 0.08  # steps are independent


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_have_the_beta_distribution(alpha: float, kind: str) -> None:
    augment = Augment(**{kind: alpha}, mix_probability=0.7)  # type: ignore[arg-type]  # kind is a float field
    drawn = [draw_mixing(augment, 1, step) for step in range(4000)]
    shares = [d.share for d in drawn if d.kind == kind]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    centres = np.array([d.box for d in drawn if d.kind == kind])
    for axis in (0, 1):
        assert stats.kstest(centres[:, axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.1 and abs(np.corrcoef(shares, centres[:, 0])[0, 1]) < 0.1


def test_with_both_a_fair_coin_decides_and_each_keeps_its_alpha() -> None:
    drawn = [draw_mixing(Augment(mixup=0.2, cutmix=5.0), 0, step) for step in range(4000)]
    assert close_to(np.mean([d.kind == "mixup" for d in drawn]), 4000, 0.5)
    for kind, alpha in (("mixup", 0.2), ("cutmix", 5.0)):
        shares = [d.share for d in drawn if d.kind == kind]
        assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    augment = Augment(mixup=0.4, cutmix=1.0, mix_probability=0.5)
    forward = [draw_mixing(augment, 0, step) for step in range(100)]
    assert [draw_mixing(augment, 0, step) for step in reversed(range(100))] == forward[::-1]
    assert [draw_mixing(augment, 1, step) for step in range(100)] != forward


def test_partners_are_permutations_of_their_own_micro_batch() -> None:
    found = {(step, m): tuple(partners(8, 0, step, m).tolist()) for step in range(100) for m in range(4)}
    assert all(sorted(p) == list(range(8)) for p in found.values())
    assert len(set(found.values())) > 390  # of 8! = 40320; they differ between steps and micro-batches
    assert partners(8, 0, 3, 1).tolist() == list(found[3, 1])
    fixed = np.mean([p[i] == i for p in found.values() for i in range(8)])
    assert close_to(float(fixed), 3200, 1 / 8)
    assert partners(1, 0, 0, 0).tolist() == [0]


# --- what is done to images ---


def test_not_mixed_is_untouched() -> None:
    images, targets = images_and_targets()
    mixed, soft = mix(images, targets, NOT_MIXED, partners(5, 0, 0, 0))
    assert mixed is images and soft is targets


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_the_formula(share: float) -> None:
    images, targets = images_and_targets()
    partner = torch.tensor([2, 1, 4, 0, 3])
    mixed, soft = mix(images, targets, Mixing("mixup", share), partner)
    for i, j in enumerate(partner.tolist()):
        assert torch.allclose(mixed[i], share * images[i] + (1 - share) * images[j], atol=1e-7)
        assert torch.allclose(soft[i], share * targets[i] + (1 - share) * targets[j], atol=1e-7)


def rand_bbox(height: int, width: int, share: float, cy: int, cx: int) -> tuple[int, int, int, int]:
    """The paper's function (Yun et al. 2019, their code), with a given centre."""
    cut_rat = np.sqrt(1.0 - share)
    cut_w, cut_h = int(width * cut_rat), int(height * cut_rat)
    x1, x2 = np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width)
    y1, y2 = np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height)
    return int(y1), int(y2), int(x1), int(x2)


def test_cutmix_pastes_exactly_the_box_and_targets_count_its_pixels() -> None:
    images, targets = images_and_targets()
    height, width = images.shape[2:]
    rng, areas = np.random.default_rng(0), set()
    for case in range(300):
        share, y, x = rng.random(3)
        mixing = Mixing("cutmix", 0.0 if case == 0 else 1.0 if case == 1 else share, (y, x))
        partner = torch.from_numpy(rng.permutation(5))
        untouched = images.clone()
        mixed, soft = mix(images, targets, mixing, partner)
        assert images.equal(untouched)
        top, bottom, left, right = rand_bbox(height, width, mixing.share, int(y * height), int(x * width))
        assert cutmix_box(mixing, height, width) == (top, bottom, left, right)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        area = int(inside.sum())
        areas.add(area)
        for i, j in enumerate(partner.tolist()):
            assert mixed[i].equal(torch.where(inside, images[j], images[i]))
            kept = 1 - area / (height * width)
            assert torch.allclose(soft[i], kept * targets[i] + (1 - kept) * targets[j], atol=1e-6)
        assert torch.allclose(soft.sum(1), torch.ones(5), atol=1e-6)
    assert 0 in areas and len(areas) > 20


def test_mixing_keeps_channels_last() -> None:
    images, targets = images_and_targets()
    images = images.contiguous(memory_format=torch.channels_last)
    for mixing in (Mixing("mixup", 0.3), Mixing("cutmix", 0.3, (0.5, 0.5))):
        mixed, _ = mix(images, targets, mixing, partners(5, 0, 0, 0))
        assert mixed.is_contiguous(memory_format=torch.channels_last)


# --- targets and losses ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_targets_give_torchs_smoothed_loss(smoothing: float) -> None:
    logits, labels = torch.randn(16, 7), torch.randint(0, 7, (16,))
    targets = soft_targets(labels, 7, smoothing)
    assert torch.allclose(targets.sum(1), torch.ones(16))
    own = loss_per_image(logits, targets, "ce")
    assert own.shape == (16,)
    reference = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(logits, labels)
    assert torch.allclose(own, reference, atol=1e-6)


def test_loss_of_soft_targets_with_and_without_weights() -> None:
    logits, targets = torch.randn(16, 7), torch.rand(16, 7).softmax(1)
    weights = torch.rand(7) + 0.5
    for w in (None, weights):
        own = loss_per_image(logits, targets, "ce", w)
        assert torch.allclose(own, nn.CrossEntropyLoss(weight=w, reduction="none")(logits, targets), atol=1e-6)
    labels = targets.argmax(1)
    hard = loss_per_image(logits, soft_targets(labels, 7, 0.0), "ce", weights)
    assert torch.allclose(hard, nn.CrossEntropyLoss(weight=weights, reduction="none")(logits, labels), atol=1e-6)


def test_squared_error_is_the_mean_over_classes_times_the_images_weight() -> None:
    logits, labels, weights = torch.randn(16, 7), torch.randint(0, 7, (16,)), torch.rand(7) + 0.5
    targets = soft_targets(labels, 7, 0.0)
    plain = nn.MSELoss(reduction="none")(logits, targets).mean(1)
    assert torch.allclose(loss_per_image(logits, targets, "mse"), plain)
    assert torch.allclose(loss_per_image(logits, targets, "mse", weights), plain * weights[labels], atol=1e-6)
    soft = 0.3 * targets + 0.7 * targets.roll(1, 0)  # mixed images: the weight is mixed equally
    mixed = nn.MSELoss(reduction="none")(logits, soft).mean(1) * (0.3 * weights[labels] + 0.7 * weights[labels.roll(1)])
    assert torch.allclose(loss_per_image(logits, soft, "mse", weights), mixed, atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.8, 0.3])
def test_a_mixed_image_is_recognised_if_its_larger_part_is(share: float) -> None:
    labels, partner = torch.arange(10) % 4, torch.arange(9, -1, -1)
    targets = soft_targets(labels, 4, 0.1)
    _, mixed = mix(torch.zeros(10, 3, 4, 4), targets, Mixing("mixup", share), partner)
    logits = torch.randn(10, 4)
    larger = labels if share > 0.5 else labels[partner]
    expected = [int(np.argmax(row)) == label for row, label in zip(logits.numpy(), larger.tolist(), strict=True)]
    assert right_per_image(logits, mixed).tolist() == expected and 0 < sum(expected) < 10


def test_half_precision_logits_are_judged_in_full() -> None:
    logits = (torch.randn(4, 7) * 20).bfloat16()
    loss = loss_per_image(logits, soft_targets(torch.zeros(4, dtype=torch.long), 7, 0.0), "ce")
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, nn.CrossEntropyLoss(reduction="none")(logits.float(), torch.zeros(4, dtype=torch.long)))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_class_weights_follow_frequency_and_have_mean_one_over_images(power: float) -> None:
    labels = np.repeat([0, 1, 3], [10, 40, 50])  # class 2 has no image
    weights = class_weights(labels, 4, power, CPU)
    assert weights is not None and weights.dtype == torch.float32
    assert weights.numpy()[labels].mean() == pytest.approx(1, abs=1e-6)
    assert float(weights[0] / weights[1]) == pytest.approx(4**power, rel=1e-6)
    assert float(weights[0] / weights[3]) == pytest.approx(5**power, rel=1e-6)
    assert weights.isfinite().all()
    assert class_weights(labels, 4, 0.0, CPU) is None


def test_at_power_one_every_class_contributes_alike() -> None:
    labels = np.repeat([0, 1, 2], [10, 40, 50])
    weights = class_weights(labels, 3, 1.0, CPU)
    assert weights is not None
    sums = np.bincount(labels, weights=weights.numpy()[labels])
    assert sums == pytest.approx([100 / 3] * 3, rel=1e-6)
