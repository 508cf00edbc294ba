"""Which image, how augmented, in whose hands: all of it is a function of (seed, index)."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from PIL import Image
from scipy import stats

from cls import config
from cls.data.corrupt_images import CorruptImages, read_corrupt
from cls.data.dataset import MAX_TRIES, BatchDataset, TrainDataset, ViewDataset
from cls.data.loader import Batch, batches, load_batch, preprocess
from cls.data.readers import Images, images_of
from cls.data.sampler import MicroBatchSampler, Sampler
from cls.data.sources import load
from cls.data.split import COLUMNS
from cls.distributed.tree_reduce import shares
from cls.distributed.world import World
from cls.runtime.exit import DataError
from cls.transforms.ops import Op, training_ops, view_ops

SIZE = 16
DATA = config.Data(path="unused", size=SIZE)
AUGMENT = config.Augment(hflip=0.5, rotate=10.0, brightness=0.3, erase=0.5)
OPS: tuple[Op, ...] = training_ops(AUGMENT, DATA, (0.5, 0.5, 0.5))
ALONE = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


def jpeg(label: int, number: int) -> bytes:
    """Noise around a class's grey, so that no two images are alike."""
    pixels = np.random.default_rng([label, number]).integers(40 * label, 40 * label + 60, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(root: Path, counts: tuple[int, ...], broken: dict[tuple[int, int], bytes] | None = None) -> Dataset:
    """The training rows of a real folder with so many JPEGs of each class; some files hold other bytes."""
    for split, of_class in (("train", counts), ("val", (1,) * len(counts))):
        for label, count in enumerate(of_class):
            (root / split / str(label)).mkdir(parents=True)
            for number in range(count):
                data = (broken or {}).get((label, number)) if split == "train" else None
                file = root / split / str(label) / f"{number:02d}.jpg"
                file.write_bytes(jpeg(label, number) if data is None else data)
    return load(config.Data(path=str(root), size=SIZE), 0).train


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("images"), (5, 3, 9))  # 17 images


class Sample(NamedTuple):
    pixels: torch.Tensor  # 3 h w
    label: int
    index: int
    row: int
    area: tuple[int, int, int, int]
    corrupt: tuple[tuple[int, str], ...]


def samples_of(dataset: BatchDataset, indices: Iterable[int]) -> list[Sample]:
    """Each index as a batch of its own."""
    found = (load_batch(dataset, [index]) for index in indices)
    return [Sample(b.pixels[0], int(b.labels[0]), b.indices[0], b.rows[0], b.areas[0], tuple(b.corrupt)) for b in found]


def dataset_of(rows: Dataset, ops: tuple[Op, ...] = OPS, seed: int = 0, exact_order: bool = False) -> TrainDataset:
    return TrainDataset(images_of(rows), ops, SIZE, seed, exact_order=exact_order)


def sha(batch: Batch) -> str:
    return hashlib.sha256(batch.pixels.numpy().tobytes() + repr(batch.areas).encode()).hexdigest()


# --- order ---


@pytest.mark.parametrize("n", [1, 2, 7, 17, 100])
def test_each_image_exactly_once_per_epoch(n: int) -> None:
    order = Sampler(np.zeros(n, dtype=int), 3, balanced=False)
    epochs = [[order.row(index) for index in range(e * n, (e + 1) * n)] for e in range(5)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n >= 17:
        assert len({tuple(epoch) for epoch in epochs}) == 5  # another order every time
        assert [Sampler(np.zeros(n, dtype=int), 4, balanced=False).row(d) for d in range(n)] != epochs[0]


def test_order_has_no_state() -> None:
    labels = np.arange(17) % 3
    for balanced in (False, True):
        forward = [Sampler(labels, 0, balanced).row(index) for index in range(200)]  # a fresh one for every index
        one = Sampler(labels, 0, balanced)
        assert [one.row(index) for index in range(200)] == forward
        assert [one.row(index) for index in reversed(range(200))] == forward[::-1]


def test_first_places_are_uniform() -> None:
    counts = np.bincount([Sampler(np.zeros(10, dtype=int), seed, False).row(0) for seed in range(3000)], minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "batch", "micro_batch"), [(17, 8, 2), (23, 20, 5), (12, 12, 3), (9, 8, 1)])
def test_ranks_together_use_each_image_once_per_epoch(world_size: int, n: int, batch: int, micro_batch: int) -> None:
    """n is a multiple of neither batch nor ranks; the run stops and continues with another number of ranks."""
    steps, seen = 4 * n, []
    order = Sampler(np.zeros(n, dtype=int), 0, False)
    for start, stop, ranks in ((0, 5, world_size), (5, steps, world_size % 4 + 1)):
        parts = [
            list(MicroBatchSampler(start, stop, batch, micro_batch, share))
            for share in shares(batch // micro_batch, ranks)
        ]
        for share, part in zip(shares(batch // micro_batch, ranks), parts, strict=True):
            assert len(part) == (stop - start) * len(share)
            assert len(part) == len(MicroBatchSampler(start, stop, batch, micro_batch, share))
            assert all(len(indices) == micro_batch for indices in part)
        for step in range(stop - start):
            for share, part in zip(shares(batch // micro_batch, ranks), parts, strict=True):
                for indices in part[step * len(share) : (step + 1) * len(share)]:
                    seen += indices
    assert seen == list(range(steps * batch))  # in global order, none lost, none twice
    images = [order.row(index) for index in seen]
    for epoch in range(len(seen) // n):
        assert sorted(images[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_balanced_classes_take_turns_and_each_image_has_its_turn() -> None:
    labels = np.array([0] * 2 + [1] * 5 + [3] * 3)  # class 2 is empty
    order = Sampler(labels, 0, balanced=True)
    drawn = [order.row(index) for index in range(3 * 60)]
    turns = np.array([labels[row] for row in drawn]).reshape(60, 3)
    assert all(sorted(turn) == [0, 1, 3] for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 6  # all orders of the classes occur
    for label, count in ((0, 2), (1, 5), (3, 3)):
        own = [row for row in drawn if labels[row] == label]
        epochs = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
        assert all(sorted(epoch) == np.flatnonzero(labels == label).tolist() for epoch in epochs)
    assert Counter(labels[drawn]) == {0: 60, 1: 60, 3: 60}


# --- augmentation ---


def test_workers_do_not_matter(rows: Dataset) -> None:
    found = {}
    for workers in (0, 1, 3):
        indices = MicroBatchSampler(2, 6, 6, 3, range(2))
        found[workers] = [
            (b.indices, b.rows, b.labels.tolist(), sha(b)) for b in batches(dataset_of(rows), indices, workers, 3)
        ]
    assert len(found[0]) == 8 and found[0] == found[1] == found[3]
    assert [index for indices, *_ in found[0] for index in indices] == list(range(12, 36))


def test_the_global_generators_are_neither_read_nor_changed_by_loading(rows: Dataset) -> None:
    def load_all(seed: int) -> list[str]:
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        hashes = [sha(b) for b in batches(dataset_of(rows), MicroBatchSampler(0, 3, 4, 4, range(1)), 1, 4)]
        assert torch.get_rng_state().equal(before)
        return hashes

    assert load_all(1) == load_all(2)


def test_augmentation_depends_on_the_sample_index_only(rows: Dataset) -> None:
    dataset = dataset_of(rows)
    forward = samples_of(dataset, range(51))
    order = np.random.default_rng(0).permutation(51).tolist()
    shuffled = dict(zip(order, samples_of(dataset_of(rows), order), strict=True))
    for d, sample in enumerate(forward):
        again = shuffled[d]
        assert sample.pixels.equal(again.pixels) and sample[1:] == again[1:]
        assert sample.index == d and sample.row == dataset.sampler.row(d) and sample.label == rows[sample.row]["label"]
        assert sample.pixels.shape == (3, SIZE, SIZE) and sample.pixels.dtype == torch.uint8
    of_one_image = [sample.pixels.numpy().tobytes() for sample in forward if sample.row == 4]
    assert len(of_one_image) == len(set(of_one_image)) == 3  # another augmentation in every epoch
    other = samples_of(dataset_of(rows, seed=1), range(51))
    assert any(not a.pixels.equal(b.pixels) for a, b in zip(forward, other, strict=True))


def test_plain_framing_is_the_same_in_every_epoch(rows: Dataset) -> None:
    """The control of the test above: without random operations an image is always the same pixels."""
    plain = training_ops(config.Augment(frame="squash"), DATA, (0.5, 0.5, 0.5))
    samples = samples_of(dataset_of(rows, plain, exact_order=True), range(51))
    for row in range(17):
        assert len({s.pixels.numpy().tobytes() for s in samples if s.row == row}) == 1
        own = next(s for s in samples if s.row == row)
        image = Image.open(rows[row]["image"]["path"]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        assert np.abs(own.pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(image).astype(int)).max() <= 1


# --- corrupt images ---

HALF = jpeg(1, 0)[: len(jpeg(1, 0)) * 2 // 3]


def test_corrupt_images_are_replaced_by_others_of_their_class(tmp_path: Path) -> None:
    rows = write(tmp_path, (4, 4, 4), {(0, 1): b"", (1, 2): HALF, (1, 3): b"no image"})
    bad = {1, 6, 7}
    dataset = dataset_of(rows)
    samples = samples_of(dataset, range(12 * 20))
    replaced = [s for s in samples if s.corrupt]
    for sample in samples:
        asked = dataset.sampler.row(sample.index)
        assert sample.label == rows[sample.row]["label"] == rows[asked]["label"]
        assert sample.row not in bad
        if asked in bad:
            assert sample.corrupt[0][0] == asked and {row for row, _ in sample.corrupt} <= bad
        else:
            assert sample.corrupt == () and sample.row == asked
        (again,) = samples_of(dataset_of(rows), [sample.index])  # the same in any process
        assert again.pixels.equal(sample.pixels) and again[1:] == sample[1:]
    assert len(replaced) == 20 * 3
    assert {s.row for s in replaced if s.label == 0} == {0, 2, 3}  # not always the same one
    reasons = {row: reason for s in replaced for row, reason in s.corrupt}
    assert reasons.keys() == bad and "empty file" in reasons[1] and "not an image" in reasons[7]
    assert "truncated" in reasons[6].lower()


def test_of_a_class_without_a_readable_image_another_class_has_its_own_label(tmp_path: Path) -> None:
    rows = write(tmp_path, (2, 3, 3), {(0, 0): b"", (0, 1): HALF})
    samples = [s for s in samples_of(dataset_of(rows), range(80)) if s.corrupt]
    assert len(samples) == 20
    assert all(s.label == rows[s.row]["label"] and s.label in (1, 2) for s in samples)
    assert all({row for row, _ in s.corrupt} == {0, 1} for s in samples)
    assert {s.label for s in samples} == {1, 2}


def test_a_class_with_many_corrupt_images_never_yields_blank_squares(tmp_path: Path) -> None:
    """60 of 70 images of a class in 6,000 are within max_corrupt: nothing may be trained on but real images."""
    rows = write(tmp_path, (MAX_TRIES + 10, 4), {(0, n): b"" for n in range(MAX_TRIES + 10)})
    for sample in samples_of(dataset_of(rows), range(5)):
        assert sample.row not in {row for row, _ in sample.corrupt}


def test_when_no_image_can_be_read_it_is_a_data_error(tmp_path: Path) -> None:
    rows = write(tmp_path, (2, 2), {(label, n): b"" for label in (0, 1) for n in (0, 1)})
    with pytest.raises(DataError, match="read"):
        samples_of(dataset_of(rows), [0])


def test_a_missing_file_is_a_corrupt_image(tmp_path: Path) -> None:
    rows = write(tmp_path, (3, 3))
    (tmp_path / "train" / "0" / "01.jpg").unlink()
    found = {row: reason for sample in samples_of(dataset_of(rows), range(6)) for row, reason in sample.corrupt}
    assert found == {1: "cannot be read: No such file or directory"}


def named(ids: list[str]) -> Images:
    """Images of which only the names matter."""
    nothing = [{"bytes": b"", "path": None}] * len(ids)
    table = {"image": nothing, "id": ids, "label": [0] * len(ids)}
    return images_of(Dataset.from_dict(table, features=Features(COLUMNS | {"label": Value("int64")})))


def test_the_quota_counts_distinct_images_over_all_attempts(tmp_path: Path) -> None:
    path, ids = tmp_path / "corrupt_images.csv", [f"a/{i}, x.jpg" for i in range(200)]
    images = named(ids)
    first = CorruptImages(tmp_path, images, 0.01, ALONE)
    first.agree()
    assert not path.exists()
    for _ in range(3):
        first.note([(7, "empty file")])
    first.note([(3, 'odd, "quoted"\nreason')])
    first.agree()
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "reason"], [ids[3], 'odd, "quoted"\nreason'], [ids[7], "empty file"]]

    second = CorruptImages(tmp_path, images, 0.01, ALONE)  # a restart
    second.note([(7, "empty file")])
    second.agree()
    second.note([(9, "gone")])
    with pytest.raises(DataError) as caught:
        second.agree()
    for part in ("3 of 200", "data.max_corrupt", str(path)):
        assert part in str(caught.value)
    assert len(path.read_text().splitlines()) == 5  # the third one is listed, too
    assert read_corrupt(tmp_path) == {ids[3]: 'odd, "quoted"\nreason', ids[7]: "empty file", ids[9]: "gone"}
    with pytest.raises(DataError):
        CorruptImages(tmp_path, images, 0.01, ALONE).agree()  # and so does the next attempt
    CorruptImages(tmp_path, images, 0.02, ALONE).agree()


def test_the_list_of_an_earlier_version_is_read_and_continued(tmp_path: Path) -> None:
    old, images = tmp_path / "bad_images.csv", named(["a", "b", "c"])
    old.write_text("id,reason\na,cut off\nb,cut off\n")
    assert read_corrupt(tmp_path) == {"a": "cut off", "b": "cut off"}
    with pytest.raises(DataError, match=re.escape(str(old))):
        CorruptImages(tmp_path, images, 0.0, ALONE).agree()
    resumed = CorruptImages(tmp_path, images, 1.0, ALONE)
    resumed.note([(2, "empty file")])
    resumed.agree()
    assert read_corrupt(tmp_path) == {"a": "cut off", "b": "cut off", "c": "empty file"}
    assert old.read_text() == "id,reason\na,cut off\nb,cut off\n"


def test_a_list_changed_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "corrupt_images.csv").write_bytes(b"\xef\xbb\xbfnote,id\n,a\nx,\ny,b\xff,1,2\n")
    assert read_corrupt(tmp_path) == {"a": "", "b\ufffd": ""}
    (tmp_path / "corrupt_images.csv").write_text("no,columns\n1,2\n")
    assert read_corrupt(tmp_path) == {}


def test_one_corrupt_image_is_always_tolerated(tmp_path: Path) -> None:
    corrupt = CorruptImages(tmp_path, named(["a", "b"]), 0.0, ALONE)
    corrupt.note([(0, "x")])
    corrupt.agree()
    corrupt.note([(1, "x")])
    with pytest.raises(DataError, match="2 of 2"):
        corrupt.agree()


def test_a_corrupt_evaluation_image_is_black_and_named(tmp_path: Path) -> None:
    rows = write(tmp_path, (2, 2), {(0, 1): b""})
    batch = load_batch(ViewDataset(images_of(rows), view_ops("identity", DATA), SIZE, 0, "identity"), range(4))
    assert batch.rows == [0, 1, 2, 3] and batch.labels.tolist() == [0, 0, 1, 1]
    assert batch.corrupt == [(1, "empty file (0 bytes)")]
    assert [bool(image.any()) for image in batch.pixels] == [True, False, True, True]


def test_random_views_depend_on_seed_view_and_image_only(rows: Dataset) -> None:
    def hashes(seed: int, view: config.View) -> list[bytes]:
        views = ViewDataset(images_of(rows), view_ops(view, DATA), SIZE, seed, view)
        return [sample.pixels.numpy().tobytes() for sample in samples_of(views, range(17))]

    assert hashes(0, "rotate") == hashes(0, "rotate") != hashes(1, "rotate")
    assert hashes(0, "identity") == hashes(1, "identity")


@pytest.mark.parametrize("view", ["identity", "hflip", "rotate", "crop"])
def test_a_view_of_an_image_is_the_same_alone_and_in_any_list(rows: Dataset, view: config.View) -> None:
    def seen(some: Dataset) -> dict[str, bytes]:
        views = ViewDataset(images_of(some), view_ops(view, DATA), SIZE, 0, view)
        samples = samples_of(views, range(len(some)))
        return {name: sample.pixels.numpy().tobytes() for name, sample in zip(some["id"], samples, strict=True)}

    whole = seen(rows)
    assert seen(rows.select(range(16, -1, -1))) == whole and len(set(whole.values())) == 17
    assert seen(rows.select([11])) == {rows[11]["id"]: whole[rows[11]["id"]]}


# --- on the device ---

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_batch(indices: list[int], boxes: list[tuple[int, int, int, int]], size: int = SIZE) -> Batch:
    pixels = torch.stack(
        [torch.from_numpy(np.random.default_rng(d).integers(0, 256, (3, size, size), dtype=np.uint8)) for d in indices]
    )
    return Batch(pixels, torch.zeros(len(indices), dtype=torch.long), boxes, indices, indices, [])


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalisation_is_the_formula(channels_last: bool) -> None:
    batch = random_batch([0, 1], [(0, 0, 0, 0)] * 2)
    images = preprocess((MEAN, STD), 0, channels_last, torch.device("cpu"))(batch)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last) == channels_last
    for channel in range(3):
        expected = (batch.pixels[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert (images[:, channel] - expected).abs().max() < 1e-6


def test_erased_boxes_are_standard_normal_noise_before_normalising() -> None:
    prepare = preprocess((MEAN, STD), 0, False, torch.device("cpu"))
    box = (4, 8, 100, 90)
    plain, erased = (
        prepare(random_batch([5, 6, 7], boxes, 128)) for boxes in ([(0, 0, 0, 0)] * 3, [box, (0, 0, 0, 0), box])
    )
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[4:104, 8:98] = True
    assert erased[:, :, ~inside].equal(plain[:, :, ~inside]) and erased[1].equal(plain[1])
    noise = erased[[0, 2]] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    values = noise[:, :, inside].numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(values.reshape(6, -1))[np.triu_indices(6, 1)]).max() < 0.05  # no channel repeats another


def test_erase_noise_depends_on_seed_and_sample_index_only() -> None:
    box, none = (2, 3, 5, 6), (0, 0, 0, 0)
    prepare = preprocess((MEAN, STD), 0, True, torch.device("cpu"))
    torch.manual_seed(1)
    first = prepare(random_batch([40, 41], [box, box]))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = prepare(random_batch([9, 41, 40], [none, box, box]))
    assert torch.get_rng_state().equal(before)
    assert second[2].equal(first[0]) and second[1].equal(first[1])
    noise = [image[:, 2:7, 3:9] for image in first]
    assert not noise[0].equal(noise[1])
    other = preprocess((MEAN, STD), 1, True, torch.device("cpu"))(random_batch([40], [box]))
    assert not other[0, :, 2:7, 3:9].equal(noise[0])
