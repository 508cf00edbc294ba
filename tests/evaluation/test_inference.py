"""The one inference path, against a plain loop over the same files."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cls import config
from cls.config import Run, View, change
from cls.data.dataset import EvalDataset
from cls.data.loader import Preprocess, preprocess
from cls.data.sources import load
from cls.distributed.world import StopFlag, World
from cls.evaluation.inference import Predictor, row_slices
from cls.evaluation.metrics import accuracy, summary
from cls.evaluation.predictions import Predictions

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_size=1, device=CPU)  # it is not asked
SIZE, CLASSES = 16, ("0", "1", "2")
STATISTICS = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Net(nn.Module):
    """BatchNorm and dropout, so that train mode would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop, self.fc = (
            nn.Conv2d(3, 5, 5),
            nn.BatchNorm2d(5),
            nn.Dropout(0.5),
            nn.Linear(5, 3),
        )
        self.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]  # it has buffers
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]  # it has buffers

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, 3 * self.fc(self.drop(self.norm(self.conv(images)).relu().mean((2, 3)))))


def write(root: Path, broken: set[tuple[int, int]] = frozenset()) -> Dataset:  # type: ignore[assignment]  # empty
    """11 validation images of 3 classes, 16 x 16 PNG, so that squashing changes nothing."""
    for split, counts in (("train", (2, 2, 2)), ("val", (5, 4, 2))):
        for label, count in enumerate(counts):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([label, i]).integers(0, 80 + 80 * label, (SIZE, SIZE, 3), dtype=np.uint8)
                file = root / split / str(label) / f"{i}.png"
                Image.fromarray(pixels).save(file)
                if split == "val" and (label, i) in broken:
                    file.write_bytes(file.read_bytes()[:100])
    return load(config.Data(path=str(root), size=SIZE, eval_frame="squash"), 0).val


def run_of(eval_batch: int = 4, **optim: Any) -> Run:
    data = {"size": SIZE, "eval_frame": "squash", "workers": 0}
    return change(Run(), data=data, train={"eval_batch": eval_batch, "precision": "fp32"}, optim=optim)


def prepared() -> Preprocess:
    return preprocess(STATISTICS, 0, False, CPU)


def look(rows: Dataset, run: Run, model: nn.Module | None = None, views: tuple[View, ...] = ()) -> Predictions:
    return Predictor(model or Net(), CLASSES, run, ALONE, prepared()).predict(EvalDataset(rows, views, run))


def plain_logits(rows: Dataset, flip: bool = False) -> Tensor:
    """One image at a time, with nothing of ours but the network."""
    model, mean, std = Net().eval(), *(torch.tensor(values).view(3, 1, 1) for values in STATISTICS)
    found = []
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(row["image"]["path"]))).permute(2, 0, 1).float() / 255
        pixels = pixels.flip(2) if flip else pixels
        with torch.no_grad():
            found.append(model(((pixels - mean) / std)[None])[0])
    return torch.stack(found).double()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("evaluate"))


def test_validation_may_be_larger_than_training(rows: Dataset) -> None:
    """Images of 16 are shown at 16 though training has 8: the same probabilities as by the plain loop."""
    run = change(run_of(), data={"size": SIZE // 2, "eval_size": SIZE})
    assert look(rows, run).probs == pytest.approx(plain_logits(rows).softmax(1).numpy(), abs=1e-6)
    assert look(rows, change(run, data={"eval_size": 0})).probs != pytest.approx(look(rows, run).probs, abs=1e-3)


# --- slices ---


def test_every_row_once_and_equally_many_slices_on_every_rank() -> None:
    for rows in (1, 2, 5, 8, 31, 32, 33, 100):
        for size in (1, 3, 8, 32, 200):
            for world_size in range(1, 6):
                count = -(-rows // size)
                parts = [row_slices(rows, size, rank, world_size) for rank in range(world_size)]
                assert {len(part) for part in parts} == {-(-count // world_size)}
                in_turn = [parts[i % world_size][i // world_size] for i in range(len(parts[0]) * world_size)]
                assert in_turn[:count] == [list(range(a, min(a + size, rows))) for a in range(0, rows, size)]
                assert all(extra == in_turn[0] for extra in in_turn[count:])  # dropped by _logits


class Part(World):
    """One rank of several whose sum with the others is left to the test."""

    def gather(self, item: Any) -> list[Any]:
        return [item]

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def stop_flag(self) -> StopFlag:
        return StopFlag(ALONE)


def test_the_shares_of_several_ranks_are_disjoint_and_together_all(rows: Dataset) -> None:
    """Each rank fills its own rows only, so that their sum has the bits of one process."""

    def logits(world: World) -> Tensor:
        predictor = Predictor(Net(), CLASSES, run_of(), world, prepared())
        (part,) = predictor._parts(EvalDataset(rows, (), run_of()), 64)
        return part.logits[0]

    for world_size in (2, 3, 5):
        ranks = [Part(rank=r, size=world_size, local_size=world_size, device=CPU) for r in range(world_size)]
        parts = torch.stack([logits(rank) for rank in ranks])
        assert parts.any(2).sum(0).tolist() == [1] * 11
        assert parts.sum(0).equal(logits(ALONE))


# --- predictions ---


@pytest.mark.parametrize("eval_batch", [1, 4, 11, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_probabilities_are_those_of_a_plain_loop(rows: Dataset, eval_batch: int, workers: int) -> None:
    found = look(rows, change(run_of(eval_batch), data={"workers": workers}))
    assert found.ids == list(rows["id"]) and len(set(found.ids)) == 11
    assert found.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 2 and found.errors == [""] * 11
    expected = plain_logits(rows).softmax(1)
    assert np.abs(found.probs - expected.numpy()).max() < 1e-6
    assert found.probs.std(0).min() > 1e-3  # the images do differ


def test_a_model_in_train_mode_is_put_into_eval_mode_and_left_unchanged(rows: Dataset) -> None:
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    first = look(rows, run_of(), model)
    assert not model.training and all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert np.array_equal(first.probs, look(rows, run_of(3 + 1), model.train()).probs)  # dropout is off


def test_the_loss_is_the_criterion_without_smoothing_and_weights(rows: Dataset) -> None:
    logits, labels = plain_logits(rows), torch.tensor(rows["label"][:])
    for extra in ({}, {"label_smoothing": 0.3}, {"class_weight": 1.0}):
        assert look(rows, run_of(**extra)).loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    squared = F.mse_loss(logits, F.one_hot(labels, 3).double())
    assert look(rows, run_of(loss="mse")).loss == pytest.approx(squared.item(), rel=1e-5)


def test_views_average_softmax(rows: Dataset) -> None:
    both = look(rows, run_of(), views=("identity", "hflip"))
    plain, flipped = plain_logits(rows).softmax(1), plain_logits(rows, flip=True).softmax(1)
    assert np.abs(both.probs - (plain + flipped).numpy() / 2).max() < 1e-6
    assert np.abs(both.probs - plain.numpy()).max() > 1e-3
    once = look(rows, run_of(), views=("hflip",))
    assert np.abs(once.probs - flipped.numpy()).max() < 1e-6


def test_random_views_are_the_same_in_any_batches(rows: Dataset) -> None:
    views: Any = {"views": ("rotate", "crop")}
    assert np.abs(look(rows, run_of(2), **views).probs - look(rows, run_of(5), **views).probs).max() < 1e-6


def test_a_broken_image_keeps_its_row_and_counts_as_wrong(tmp_path: Path) -> None:
    good, rows = write(tmp_path / "good"), write(tmp_path / "bad", {(0, 2), (2, 1)})
    whole, found = look(good, run_of()), look(rows, run_of())
    bad = [2, 10]
    assert [row for row, error in enumerate(found.errors) if error] == bad
    assert found.ids == whole.ids and found.labels.tolist() == whole.labels.tolist()
    assert not found.probs[bad].any()
    kept = [row for row in range(11) if row not in bad]
    assert np.array_equal(found.probs[kept], whole.probs[kept])
    right = (whole.probs.argmax(1) == whole.labels)[kept].sum()
    assert accuracy(found) == right / 11 and summary(found)["corrupt"] == 2
    logits, labels = plain_logits(good)[kept], torch.tensor(good["label"][:])[kept]
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)  # of the readable ones


def test_images_without_labels_have_probabilities_but_no_loss(rows: Dataset) -> None:
    unlabelled = rows.remove_columns("label").add_column("label", np.full(11, -1))
    found = look(unlabelled, run_of())
    assert np.isnan(found.loss) and np.isnan(accuracy(found))
    assert np.array_equal(found.probs, look(rows, run_of()).probs)


@pytest.mark.parametrize("views", [("identity",), ("hflip", "rotate", "crop", "identity", "hflip")])
def test_what_is_streamed_is_the_whole_in_row_order(tmp_path: Path, views: Any) -> None:
    """Every field, and every bit of the probabilities, whatever a piece is made of."""
    rows = write(tmp_path, {(0, 2), (2, 1)})
    for eval_batch in (1, 4, 11):
        run = run_of(eval_batch)
        whole = look(rows, run, views=views)
        predictor = Predictor(Net().train(), CLASSES, run, ALONE, prepared())
        parts = list(predictor.stream(EvalDataset(rows, views, run)))
        assert [len(part.ids) for part in parts] == [min(eval_batch, 11 - i) for i in range(0, 11, eval_batch)]
        assert [name for part in parts for name in part.ids] == whole.ids == list(rows["id"])
        assert [label for part in parts for label in part.labels.tolist()] == whole.labels.tolist()
        assert [error for part in parts for error in part.errors] == whole.errors and whole.errors[2]
        assert np.concatenate([part.probs for part in parts]).tobytes() == whole.probs.tobytes()
        assert torch.is_grad_enabled()  # a generator that waits must not leave its own state behind


def test_exchanges_do_not_change_the_whole(rows: Dataset) -> None:
    def logits(exchanged: int) -> Tensor:
        images = EvalDataset(rows, ("identity", "hflip", "rotate"), run_of(2))
        parts = list(Predictor(Net(), CLASSES, run_of(2), ALONE, prepared())._parts(images, exchanged))
        assert [part.start for part in parts] == list(range(0, 11, 2 * exchanged))
        return torch.cat([part.logits for part in parts], 1)

    for exchanged in (2, 3, 5, 6):
        assert logits(exchanged).equal(logits(1))


def test_a_model_that_has_diverged_gives_no_finite_loss(rows: Dataset) -> None:
    model = Net()
    nn.init.constant_(model.fc.bias, float("nan"))
    found = look(rows, run_of(), model)
    assert np.isnan(found.loss) and accuracy(found) == 0
