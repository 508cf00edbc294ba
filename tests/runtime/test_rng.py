"""Randomness is a function of tags: no collisions, no hidden state, the same numbers in every version."""

import itertools
import random

import numpy as np
import pytest
import torch

from cls.runtime.rng import fold, generator, torch_seed

# any change of these changes every run ever made
GOLDEN_FOLD = 90261142879755460980943493032663511159
GOLDEN_TORCH = 2407328174779927653
GOLDEN_PERMUTATION = [5, 2, 1, 3, 6, 4, 7, 0]
GOLDEN_UNIFORM = 0.9499674236763586


def test_golden_values_stay_for_ever() -> None:
    assert fold(0, "order", 0) == GOLDEN_FOLD
    assert torch_seed(63, "dropout", 7, 1) == GOLDEN_TORCH
    assert generator(0, "order", 0).permutation(8).tolist() == GOLDEN_PERMUTATION
    assert generator(63, "mix", 5).random() == GOLDEN_UNIFORM


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("abc",), ("ab", "c")),
        (("a", "b"), ("b", "a")),
        ((1,), ("1",)),
        ((12,), (1, 2)),
        (("a",), ("a", "")),
        (("a",), ("a", 0)),
        ((1, "a"), ("1", "a")),
        (('a", "b',), ("a", "b")),
        (("é",), ("e\u0301",)),
        (("\\u00e9",), ("é",)),
        ((-1,), (1,)),
    ],
)
def test_boundaries_order_and_types_of_tags_count(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert fold(0, *one) != fold(0, *other)


def test_the_seed_is_not_a_tag() -> None:
    assert fold(0, 1) != fold(1, 0)
    assert fold(0) != fold(0, 0)


def test_no_two_of_many_neighbours_collide() -> None:
    """Sums collide at once: seed 1 epoch 2 = seed 2 epoch 1."""
    cells = list(itertools.product(range(30), ("order", "augment", "erase"), range(100)))
    assert len({seed + number for seed, _, number in cells}) < 150  # the control: what a sum would give
    assert len({fold(*cell) for cell in cells}) == len(cells)
    assert len({torch_seed(*cell) for cell in cells}) == len(cells)


def test_keys_have_128_evenly_used_bits() -> None:
    keys = [fold(0, "bits", i) for i in range(4000)]
    ones = np.array([[key >> bit & 1 for bit in range(128)] for key in keys]).mean(0)
    assert max(keys).bit_length() <= 128
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / 4000**0.5  # five standard deviations


def test_the_generator_has_the_whole_key() -> None:
    """Also the upper 64 bits, and those that torch's CPU generators drop."""
    state = generator(5, "x", 1).bit_generator.state["state"]
    key = fold(5, "x", 1)
    assert [int(word) for word in state["key"]] == [key & (2**64 - 1), key >> 64]
    assert not state["counter"].any()


def test_torch_seed_is_the_lower_63_bits() -> None:
    for i in range(100):
        assert torch_seed(1, "t", i) == fold(1, "t", i) % 2**63
    torch.Generator().manual_seed(max(torch_seed(1, "t", i) for i in range(100)))  # torch accepts it


def test_streams_of_neighbours_are_independent() -> None:
    draws = np.stack([generator(0, "augment", draw).random(200) for draw in range(200)])
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / draws.size) ** 0.5
    correlations = np.corrcoef(draws)[np.triu_indices(200, 1)]
    assert abs(correlations.mean()) < 0.005 and correlations.std() == pytest.approx(200**-0.5, rel=0.05)


def test_nothing_global_is_read_or_changed() -> None:
    def states() -> list[object]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # a tuple

    before = states()
    first = generator(3, "a").random(5).tolist()
    assert states() == before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert generator(3, "a").random(5).tolist() == first


def test_a_tag_of_another_type_is_rejected() -> None:
    with pytest.raises(TypeError):
        fold(0, np.int64(1))  # type: ignore[arg-type]  # the point of the test
