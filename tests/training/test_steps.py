"""Epochs are places on the line of steps: every rule against a simulation that counts draws one by one."""

import dataclasses
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cls.config import Train
from cls.training.state import History
from cls.training.steps import Steps


def steps(images: int, batch: int, epochs: float, max_steps: int = 0) -> Steps:
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


@pytest.mark.parametrize(("images", "batch", "epochs", "ends"), [
    (100, 10, 2.5, [10, 20, 25]),
    (100, 10, 0.1, [1]),  # a tenth of 100 images is one batch; 0.1 as a float is a little more
    (300, 30, 0.3, [3]),
    (10, 10, 0.05, [1]),
    (100, 32, 1.4, [4, 5]),
    (100, 32, 3.0, [4, 7, 10]),
    (100, 32, 1.2, [4]),  # the last images are in the step that ends epoch 1
])  # fmt: skip
def test_part_of_an_epoch_ends_like_an_epoch(images: int, batch: int, epochs: float, ends: list[int]) -> None:
    found = steps(images, batch, epochs)
    assert [s for s in range(1, found.whole + 1) if found.validates(s)] == ends
    assert all(found.ends_epoch(s) for s in ends) and found.whole == found.total == ends[-1]
    assert [found.epoch_after(s) for s in ends] == [*range(1, len(ends)), epochs]
    assert found.epoch_of(1) == min(1, epochs) and found.epoch_of(found.whole) == (1 if epochs == 1.2 else epochs)


def test_a_smoke_run_ends_inside_an_epoch_as_before() -> None:
    cut = steps(100, 10, 2.5, max_steps=13)
    assert [s for s in range(1, 14) if cut.ends_epoch(s)] == [10] and cut.validates(13)
    assert (cut.epoch_after(13), cut.epoch_of(13)) == (1, 2)


def test_any_number_of_epochs_is_exact_as_it_is_written() -> None:
    for tenths in range(1, 400):
        text = f"{tenths // 10}.{tenths % 10}"
        found = steps(1000, 10, float(text))
        assert found.whole == tenths * 10, text
        assert Train(epochs=float(text)) == Train(epochs=float(f"{text}0"))
    assert f"{Train(epochs=100.0).epochs}" == "100" and f"{Train(epochs=2.5).epochs}" == "2.5"


def test_counts_are_exact_where_floats_are_not() -> None:
    images = 10**15 + 1  # images * 30 / 3 has no exact float
    assert steps(images, 3, 30).whole == 10 * images
    assert steps(images, 10, 1).whole == 10**14 + 1


def test_batch_equal_to_the_images_is_one_step_an_epoch() -> None:
    found = steps(7, 7, 3)
    assert found.whole == 3 and [found.ends_epoch(s) for s in (1, 2, 3)] == [True, True, True]


@pytest.mark.parametrize(
    ("images", "batch", "micro", "advice"),
    [
        (6, 7, 7, "--train.batch 6 --train.micro-batch 6"),
        (99, 128, 16, "--train.batch 96 --train.micro-batch 16"),
        (37, 64, 16, "--train.batch 32 --train.micro-batch 16"),
    ],
)
def test_a_batch_larger_than_the_data_is_rejected(images: int, batch: int, micro: int, advice: str) -> None:
    what = rf"train\.batch is {batch} but there are only {images} training images: use {advice}$"
    with pytest.raises(ValueError, match=what):
        Steps(images, Train(batch=batch, micro_batch=micro))
    words = advice.split()
    Steps(images, Train(batch=int(words[1]), micro_batch=int(words[3])))
    assert int(words[1]) % int(words[3]) == 0


def test_max_steps_cuts_the_run_but_moves_no_epoch() -> None:
    cut = steps(100, 32, 7, max_steps=9)
    assert (cut.total, cut.whole) == (9, 22)
    assert [s for s in range(1, 10) if cut.ends_epoch(s)] == [4, 7]
    assert steps(100, 32, 7, max_steps=22).total == steps(100, 32, 7, max_steps=1000).total == 22


def test_history_remembers_the_best_and_the_stale_epochs() -> None:
    history, bests, stale = History(), [], []
    train = Train()
    figures = [(0.5, 1.0), (0.5, 0.9), (0.7, 0.95), (0.6, 0.9), (0.7, float("nan")), (0.8, 0.8)]
    for step, (accuracy, loss) in enumerate(figures, 1):
        history.add(step, accuracy, loss, train)
        bests.append(history.best_step(train) == step)
        stale.append(history.stale)
    assert bests == [True, False, True, False, False, True]  # a tie goes to the first
    assert stale == [0, 0, 1, 2, 3, 0]
    assert (history.best_accuracy, history.best_accuracy_step) == (0.8, 6)
    assert (history.best_loss, history.best_loss_step) == (0.8, 6)
    assert History.of(history.state_dict()) == history
    assert dataclasses.asdict(History()) == History().state_dict()
    early = {name: value for name, value in history.state_dict().items() if name != "improved"}
    assert History.of(early) == history  # of a version that always followed the loss


@pytest.mark.parametrize(
    ("change", "expected"), [(0.0, [0, 0, 1, 2, 0, 1]), (0.05, [0, 0, 1, 2, 3, 4]), (0.2, [0, 1, 2, 3, 4, 5])]
)
def test_early_stopping_follows_the_accuracy_by_a_smallest_change(change: float, expected: list[int]) -> None:
    train = Train(early_stop_on="accuracy", early_stop_change=change)
    history, stale = History(), []
    for step, accuracy in enumerate((0.5, 0.625, 0.625, 0.6, 0.65, 0.65), 1):
        history.add(step, accuracy, 1.0 / step, train)  # the loss falls all the time
        stale.append(history.stale)
    assert stale == expected


def test_small_improvements_add_up_to_a_smallest_change() -> None:
    train, history, stale = Train(early_stop_change=0.15), History(), []
    for step, loss in enumerate((1.0, 0.9, 0.8, 0.7, 0.6), 1):
        history.add(step, 0.5, loss, train)
        stale.append(history.stale)
    assert stale == [0, 1, 0, 1, 0]


def test_the_kept_weights_are_those_of_the_highest_accuracy_or_the_lowest_loss() -> None:
    history = History()
    for step, (accuracy, loss) in enumerate([(0.5, 0.9), (0.8, 0.7), (0.7, 0.6), (0.8, 0.6)], 1):
        history.add(step, accuracy, loss, Train())
    assert (history.best_step(Train()), history.best_step(Train(best_on="loss"))) == (2, 3)
    history.forget_best(Train(best_on="loss"))
    history.add(5, 0.1, 5.0, Train())
    assert (history.best_step(Train()), history.best_step(Train(best_on="loss"))) == (2, 5)
