"""A folder that has not changed is not walked again; one that has, is; and what is kept costs next to no memory."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from cls import config
from cls.data.folders import folder_cache, image_folder
from cls.data.readers import column, fingerprint, images_of
from cls.data.sources import Splits, load
from cls.runtime.files import replacing
from cls.tracking.run_data import look
from tests.harness import ROOT, environment

TICK = 0.02  # of the file system's clock, at most: nobody can set the time that is looked at, so it is waited for


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", found)
    monkeypatch.setattr(folder_cache, "RACY_SECONDS", TICK)
    return found / "cls-index"


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose names are read from now on."""
    read, scandir = [], os.scandir

    def counted(path: str) -> object:
        read.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    return read


def make(root: Path, images: int = 3, classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    for split in ("train", "val"):
        for name in classes:
            for i in range(images):
                jpeg(root / split / name / f"{i}.jpg")
    age()
    return root


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7)).save(path, "JPEG")


def age() -> None:
    """Until no folder is too young any more."""
    time.sleep(2 * TICK)


def start(root: Path) -> Splits:
    return load(config.Data(path=str(root)), 0)


def listed(splits: Splits) -> dict[str, object]:
    sets = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {split: (rows["id"][:], rows["label"][:], rows["image"][:]) for split, rows in sets.items() if rows} | {
        "classes": splits.classes
    }


def test_the_second_start_reads_no_folder_and_gives_the_same(tmp_path: Path, walks: list[str]) -> None:
    root = make(tmp_path / "photos", classes=("2", "10", "ä"))
    jpeg(root / "test" / "x.jpg")
    (root / "val" / "notes.txt").write_text("x")
    age()
    first = listed(start(root))
    assert walks
    walks.clear()
    second = start(root)
    assert not walks and listed(second) == first
    images = images_of(second.train)
    assert bytes(images.read([4])[0]) == (root / "train/10/1.jpg").read_bytes()
    assert (images.name(4), second.classes) == ("train/10/1.jpg", ("2", "10", "ä"))
    assert start(root).train.features == second.train.features == load(config.Data(path="digits"), 0).train.features


def test_what_is_left_out_is_reported_at_every_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path)
    jpeg(root / "train" / "stray.jpg")
    age()
    for _ in range(2):
        caplog.clear()
        start(root)
        assert "1 images outside the class folders ignored" in caplog.text


CHANGES = {
    "a new image": lambda root: jpeg(root / "train/b/new.jpg"),
    "an image less": lambda root: (root / "val/a/1.jpg").unlink(),
    "another name": lambda root: (root / "train/a/0.jpg").rename(root / "train/a/9.jpg"),
    "a new class": lambda root: jpeg(root / "train/d/0.jpg"),
    "a class less": lambda root: [
        [file.unlink() for file in (root / split / "c").iterdir()] and (root / split / "c").rmdir()
        for split in ("train", "val")
    ],
    "a new split": lambda root: jpeg(root / "test/0.jpg"),
    "another folder in its place": lambda root: swap(root),
    "other names and the old times": lambda root: restored(root),
    "a table instead": lambda root: [(root / f"train-{i}.tar").touch() for i in range(30)],
}


def swap(root: Path) -> None:
    """A class folder with other names, its time of change and that of the folder above as they were."""
    above, old = os.stat(root / "train"), os.stat(root / "train/a")
    (root / "train/a").rename(root.parent / "away")
    jpeg(root / "train/a/other.jpg")
    os.utime(root / "train/a", ns=(old.st_atime_ns, old.st_mtime_ns))
    os.utime(root / "train", ns=(above.st_atime_ns, above.st_mtime_ns))


def restored(root: Path) -> None:
    """As cp -a, rsync and tar leave it: the same folders with other names, and the times they had elsewhere."""
    folders = [Path(above) for above, *_ in os.walk(root)]
    old = [os.stat(path) for path in folders]
    jpeg(root / "train/b/new.jpg")
    (root / "train/a/1.jpg").unlink()
    for path, status in zip(folders, old, strict=True):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [os.stat(path).st_mtime_ns for path in folders] == [status.st_mtime_ns for status in old]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_names_is_seen(tmp_path: Path, change: str) -> None:
    root = make(tmp_path / "photos")
    before = listed(start(root))
    assert folder_cache.read_index(root)
    CHANGES[change](root)
    assert folder_cache.read_index(root) is None
    if "table" in change:
        with pytest.raises(ValueError, match="cannot read"):
            start(root)
    else:
        after = listed(start(root))
        assert after != before
        age()
        assert listed(start(root)) == after


def test_an_image_that_is_rewritten_is_read_as_it_is(tmp_path: Path) -> None:
    root = make(tmp_path)
    start(root)
    (root / "train/a/0.jpg").write_bytes(b"other bytes")
    assert folder_cache.read_index(root)
    assert images_of(start(root).train).read([0]) == [b"other bytes"]


def test_links_are_followed_as_they_lead_now(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", images=5)
    (tmp_path / "photos").symlink_to(one)
    assert len(start(tmp_path / "photos").train) == 9
    (tmp_path / "photos").unlink()
    (tmp_path / "photos").symlink_to(two)
    assert len(start(tmp_path / "photos").train) == 15
    # a link behind a link: no folder below the root changes when its end does
    (tmp_path / "ahead").symlink_to(one / "train/a")
    (two / "train/linked").symlink_to(tmp_path / "ahead")
    age()
    assert len(start(two).train) == 18 and folder_cache.read_index(two)
    (tmp_path / "ahead").unlink()
    (tmp_path / "ahead").symlink_to(two / "val/b")
    assert len(start(two).train) == 20


def test_a_link_to_nothing_is_looked_at_each_time(tmp_path: Path) -> None:
    root = make(tmp_path / "photos")
    (root / "train/later").symlink_to(tmp_path / "later")
    age()
    assert len(start(root).train) == 9 and folder_cache.read_index(root) is None
    jpeg(tmp_path / "later/0.jpg")
    assert start(root).classes == ("a", "b", "c", "later")


def test_a_folder_that_changed_a_moment_ago_is_not_trusted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file may come within the same tick of the file system's clock."""
    root = make(tmp_path)
    monkeypatch.setattr(folder_cache, "RACY_SECONDS", 2.0)
    jpeg(root / "train/b/new.jpg")
    os.utime(root / "train/b", (1, 1))  # what it says of itself is not asked
    start(root)
    assert not cache.exists()
    monkeypatch.setattr(folder_cache, "RACY_SECONDS", TICK)
    age()
    start(root)
    assert len(list(cache.iterdir())) == 1


def test_an_index_that_another_process_kept_meanwhile_stays(tmp_path: Path, cache: Path) -> None:
    """Two starts at once: the slower one has walked, too, but others may have the first one's file mapped."""
    root = make(tmp_path)
    first = start(root)
    (file,) = cache.iterdir()
    inode, listing = file.stat().st_ino, image_folder.scan(root)
    found = folder_cache.keep_index(root, listing, image_folder.read(root, listing), time.time())
    assert file.stat().st_ino == inode and [*cache.iterdir()] == [file]
    assert found.parts["train"].images["id"][:] == first.train["id"][:]


def test_two_nodes_with_the_same_process_id_write_to_different_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing(tmp_path / "index") as own:
        monkeypatch.setattr(socket, "gethostname", lambda: "node2")
        with replacing(tmp_path / "index") as other:
            assert own != other
            own.write_text("one")
            other.write_text("two")
        assert own.read_text() == "one"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("index", "one")]


def test_a_name_that_comes_during_the_walk_is_not_lost(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = make(tmp_path), os.scandir

    def late(path: object) -> object:
        found = list(scandir(path))
        if str(path).endswith("train/b"):
            jpeg(root / "train/b/late.jpg")
            age()
        return iter(found)

    monkeypatch.setattr(os, "scandir", late)
    assert len(start(root).train) == 9
    monkeypatch.setattr(os, "scandir", scandir)
    assert len(list(cache.iterdir())) == 1
    assert len(start(root).train) == 10


@pytest.mark.parametrize("damage", [b"", b"no arrow file", None, -1, -700, 500])
def test_a_damaged_index_is_none(tmp_path: Path, cache: Path, damage: object) -> None:
    root = make(tmp_path)
    first = listed(start(root))
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if isinstance(damage, int):
        data = data[:damage]
    file.write_bytes(data[: len(data) // 2] if damage is None else damage if isinstance(damage, bytes) else data)
    assert listed(start(root)) == first
    assert folder_cache.read_index(root) and file.stat().st_size > 500


def test_another_version_s_index_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path)
    start(root)
    monkeypatch.setattr(folder_cache, "VERSION", folder_cache.VERSION + 1)
    assert folder_cache.read_index(root) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    root = make(tmp_path)
    assert listed(start(root)) == listed(start(root))


def test_the_fingerprint_is_that_of_the_images_not_of_their_chunks(tmp_path: Path) -> None:
    root = make(tmp_path)
    rows = start(root).train
    known = fingerprint(rows)
    assert fingerprint(start(root).train) == known
    pieces = datasets.concatenate_datasets([rows.select(range(2)), rows.select(range(2, 9))])
    assert len(pieces.data.column("id").chunks) > 1 and fingerprint(pieces) == known
    assert fingerprint(rows.select([0, 1, 2, 3, 4, 5, 6, 8, 7])) != known
    other = rows.data.table.column("id").to_pylist()
    moved = [other[0] + other[1][:1], other[1][1:], *other[2:]]  # the same letters in all
    table = pa.table({"id": moved, "label": rows["label"][:], "image": [None] * 9})
    assert fingerprint(datasets.Dataset(table)) != known
    labels = pa.table({"id": other, "label": [*rows["label"][:8], 0], "image": [None] * 9})
    assert fingerprint(datasets.Dataset(labels)) != known


def test_a_selection_is_taken_at_once(tmp_path: Path) -> None:
    """Class folders alone: validation is held out. datasets' own gathering gives one chunk per row."""
    for name in "ab":
        for i in range(20):
            jpeg(tmp_path / "photos" / name / f"{i}.jpg")
    rows = start(tmp_path / "photos").train
    assert column(rows, "id").to_pylist() == rows["id"][:] and column(rows, "label").to_pylist() == rows["label"][:]
    assert len(rows) == 36 and len(column(rows, "id").chunks) < 3
    images = images_of(rows)
    assert [images.name(row) for row in range(36)] == rows["id"][:]
    paths = [rows["image"][row]["path"] for row in (35, 0)]
    assert images.read([35, 0]) == [Path(path).read_bytes() for path in paths]


MEASURE = """
import gc, json, sys, tracemalloc
from cls import config
from cls.data.readers import images_of
from cls.tracking.run_data import look
from cls.data.sources import load
import pyarrow as pa

def own():
    "Bytes of this process that no file backs: mapped index pages are the page cache's and are shared."
    lines = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(lines["Anonymous"].split()[0]) * 1024

def start(root):
    splits = load(config.Data(path=root), 0)
    marks = look(splits).facts
    images = images_of(splits.train)
    order = images.sampler(0, False)
    images.read([order.row(index) for index in range(32)])
    return splits, images, order, marks

small, large = sys.argv[1:3]
for _ in range(3):
    kept = start(small)  # what libraries load and keep once
gc.collect()
before = own(), pa.total_allocated_bytes()
if traced := len(sys.argv) > 3:  # costs memory itself
    tracemalloc.start()
kept = start(large)
gc.collect()
after = own(), pa.total_allocated_bytes()
python = tracemalloc.get_traced_memory()[0] if traced else 0  # NumPy's arrays, too
print(json.dumps({"files": len(kept[0].train) + len(kept[0].val), "own": after[0] - before[0],
                  "arrow": after[1] - before[1], "python": python}))
"""


def many(root: Path, files: int) -> Path:
    for i in range(files):
        split = "val" if i % 10 == 0 else "train"
        path = root / split / f"class_{i % 97:03d}" / f"image_{i:07d}.jpg"
        if i < 1000:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8")
    age()
    return root


def measured(small: Path, large: Path, cache: Path, *how: str) -> dict[str, float]:
    """Bytes that a start with the larger folder added to a process that had started with the smaller one."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), *how], capture_output=True, text=True, cwd=ROOT,
        env=environment(HF_DATASETS_CACHE=str(cache)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.soak
def test_the_index_is_mapped_not_held(tmp_path: Path) -> None:
    """Per file: 8 bytes of label and 8 of the epoch's permutation; names and paths stay in the mapped file."""
    small, large = many(tmp_path / "small", 1000), many(tmp_path / "large", 8000)
    for root in (small, large):
        start(root)
    shutil.copytree(datasets.config.HF_DATASETS_CACHE, tmp_path / "cache")
    found = measured(small, large, tmp_path / "cache", "traced")
    print(found)
    assert found["files"] == 8000
    assert found["arrow"] + found["python"] < 40 * 8000


@pytest.mark.soak
def test_a_folder_of_100000_files_starts_faster_than_it_is_walked(tmp_path: Path) -> None:
    root = many(tmp_path / "large", 100_000)
    for path, what in ((root, "train and val"), (root / "train", "90,000, a tenth held out")):
        start(path)
        ratios = []
        for _ in range(5):
            gc.collect()
            walk, second = cpu(lambda path=path: stat_all(path)), cpu(lambda path=path: first_batch(path))
            ratios.append(second / walk)
        print(f"second start / walk and stat, {what}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        assert median(ratios) < 3
    folder_only = many(tmp_path / "small", 1000)
    measured(folder_only, root, tmp_path / "cache")
    found = measured(folder_only, root, tmp_path / "cache")
    print(f"{found['own'] / 1e5:.1f} bytes a file of this process alone, {found['arrow'] / 1e5:.1f} of them Arrow's")
    assert found["own"] < 100 * 100_000


def stat_all(root: Path) -> None:
    for above, _, names in os.walk(root):
        for name in names:
            os.stat(f"{above}/{name}")


def first_batch(root: Path) -> None:
    splits = start(root)
    assert look(splits).facts
    images = images_of(splits.train)
    order = images.sampler(0, False)
    assert len(images.read([order.row(index) for index in range(64)])) == 64


def cpu(work: object) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def test_names_below_the_root_are_stamped_through_links(tmp_path: Path) -> None:
    root = make(tmp_path / "photos")
    (root / "train/z").symlink_to(root / "val/a")
    folders = {one.path: one for one in image_folder.scan(root).folders}
    assert set(folders) == {"", "train/", "val/", "train/z/", *(f"{s}/{c}/" for s in ("train", "val") for c in "abc")}
    assert folders["train/z/"].inode == (root / "val/a").stat().st_ino
