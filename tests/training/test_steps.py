"""Epochs are places on the line of steps: every rule against a simulation that counts draws one by one."""

import dataclasses
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cls.config import Train
from cls.training.state import History
from cls.training.steps import Steps


def steps(images: int, batch: int, epochs: int, max_steps: int = 0) -> Steps:
    return Steps(images, Train(epochs=epochs, batch=batch, micro_batch=1, max_steps=max_steps))


def simulate(images: int, batch: int, epochs: int) -> list[int]:
    """Epochs over after each step, counted draw by draw until the last image of the last epoch has been used."""
    done, left, after = 0, images, []
    while done < epochs:
        for _ in range(batch):
            left -= 1
            if left == 0:
                done, left = done + 1, images
        after.append(done)
    return after


def agrees(images: int, batch: int, epochs: int) -> None:
    found, expected = steps(images, batch, epochs), simulate(images, batch, epochs)
    assert found.whole == found.total == len(expected)
    assert [found.epochs_done(step) for step in range(1, len(expected) + 1)] == expected
    ends = [step for step in range(1, len(expected) + 1) if found.ends_epoch(step)]
    assert ends == [expected.index(epoch) + 1 for epoch in range(1, epochs + 1)]
    assert ends == [ceil((epoch + 1) * images / batch) for epoch in range(epochs)]  # DESIGN 2.1
    assert ends[-1] == found.whole  # the run ends with an epoch


def test_all_small_cases() -> None:
    for images in range(1, 25):
        for batch in range(1, images + 1):
            for epochs in (1, 2, 3, 7):
                agrees(images, batch, epochs)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), images=st.integers(1, 800), epochs=st.integers(1, 20))
def test_any_case(data: st.DataObject, images: int, epochs: int) -> None:
    agrees(images, data.draw(st.integers(max(1, images // 50), images)), epochs)


def test_counts_are_exact_where_floats_are_not() -> None:
    images = 10**15 + 1  # images * 30 / 3 has no exact float
    assert steps(images, 3, 30).whole == 10 * images
    assert steps(images, 10, 1).whole == 10**14 + 1


def test_batch_equal_to_the_images_is_one_step_an_epoch() -> None:
    found = steps(7, 7, 3)
    assert found.whole == 3 and [found.ends_epoch(s) for s in (1, 2, 3)] == [True, True, True]


@pytest.mark.parametrize(("images", "batch"), [(6, 7), (99, 128)])
def test_a_batch_larger_than_the_data_is_rejected(images: int, batch: int) -> None:
    with pytest.raises(ValueError, match=rf"train\.batch is {batch} but there are only {images} training images"):
        steps(images, batch, 1)


def test_max_steps_cuts_the_run_but_moves_no_epoch() -> None:
    cut = steps(100, 32, 7, max_steps=9)
    assert (cut.total, cut.whole) == (9, 22)
    assert [s for s in range(1, 10) if cut.ends_epoch(s)] == [4, 7]
    assert steps(100, 32, 7, max_steps=22).total == steps(100, 32, 7, max_steps=1000).total == 22


def test_history_remembers_the_best_and_the_stale_epochs() -> None:
    history, bests, stale = History(), [], []
    figures = [(0.5, 1.0), (0.5, 0.9), (0.7, 0.95), (0.6, 0.9), (0.7, float("nan")), (0.8, 0.8)]
    for step, (accuracy, loss) in enumerate(figures, 1):
        bests.append(history.add(step, accuracy, loss))
        stale.append(history.stale)
    assert bests == [True, False, True, False, False, True]  # a tie goes to the first
    assert stale == [0, 0, 1, 2, 3, 0]
    assert (history.best_accuracy, history.best_accuracy_step) == (0.8, 6)
    assert (history.best_loss, history.best_loss_step) == (0.8, 6)
    assert History.of(history.state_dict()) == history
    assert dataclasses.asdict(History()) == History().state_dict()
