"""`cls pack`: the same images as self-contained, verified shards; an interrupted packing is resumed."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cls import config
from cls.commands import pack as packs
from cls.commands.options import PackOptions
from cls.commands.pack import pack
from cls.data import readers
from cls.data import shards as shard
from cls.data.readers import images_of
from cls.data.shards import PLACES
from cls.data.sources import labels_of, load
from cls.runtime.exit import DataError
from cls.transforms.decode import decode
from tests.harness import ROOT, environment
from tests.transforms.test_fused import encode


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", found)
    return found


def noise(number: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8))


def save(path: Path, image: Image.Image, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


def photos(root: Path, each: int = 12) -> Path:
    """Sorted by class, as folders are; an unlabelled test folder; the same file names in all classes."""
    for split, classes, count in (("train", ("2", "10", "b"), each), ("valid", ("2", "b"), 2)):
        for label, name in enumerate(classes):
            for i in range(count):
                save(root / split / name / f"{i}.jpg", noise(1000 * label + i + 500 * (split == "valid")))
    for i in range(3):
        save(root / "test" / f"t{i}.jpg", noise(9000 + i))
    return root


def content(root: Path | str, **fields: Any) -> dict[str, list[tuple[bytes, str, str]]]:
    """(bytes, class, id) of each image of each split, sorted."""
    splits, found = load(config.Data(path=str(root), **fields), 0), {}
    for name, rows in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if rows is not None:
            images, labels = images_of(rows), labels_of(rows)
            names = [(*splits.classes, "?")[label] for label in labels]
            data = images.read(range(len(images)))
            found[name] = sorted(
                (bytes(one), label, images.name(row)) for row, (one, label) in enumerate(zip(data, names, strict=True))
            )
    return found


def anonymous(found: dict[str, list[tuple[bytes, str, str]]]) -> dict[str, list[tuple[bytes, str]]]:
    return {split: [(data, name) for data, name, _ in rows] for split, rows in found.items()}


def test_shards_hold_the_same_images_for_every_reader(tmp_path: Path) -> None:
    source, to = photos(tmp_path / "photos"), tmp_path / "packed"
    document = pack(str(source), to, PackOptions())
    expected = content(source)
    ids = {split: [(d, c, i.replace("valid/", "val/")) for d, c, i in rows] for split, rows in expected.items()}
    assert content(to) == ids  # ids, too
    streamed = content(to, streaming=True)
    assert anonymous(streamed) == anonymous(expected)
    assert sorted(path.name for path in to.iterdir()) == [
        "pack.json", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet", "val-00000-of-00001.parquet",
    ]  # fmt: skip
    plain = datasets.load_dataset(str(to))
    assert set(plain) == {"train", "validation", "test"}
    assert plain["train"].features["label"].names == ["2", "10", "b"]
    first = plain["train"][0]
    key = first["__key__"]
    assert key.split("/")[0] == ["2", "10", "b"][first["label"]]
    assert np.array_equal(np.asarray(first["image"]), np.asarray(Image.open(source / "train" / key)))
    assert plain["test"]["label"][:] == [-1] * 3
    stored = json.loads((to / "pack.json").read_text())
    assert stored == {key: value for key, value in document.items() if key != "folder"}
    assert stored["classes"] == ["2", "10", "b"] and stored["options"]["short"] == 0
    assert stored["splits"]["train"]["images"] == 36 and stored["splits"]["val"]["of_class"] == {"0": 2, "2": 2}
    assert stored["splits"]["test"]["of_class"] == {"-1": 3}
    for name, entry in stored["files"].items():
        assert entry["bytes"] == (to / name).stat().st_size and entry["undecodable"] == {}


def test_rows_lie_in_a_seeded_random_order_in_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "GROUP_BYTES", 8000)  # about 5 images
    source = photos(tmp_path / "photos", each=40)
    orders = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        pack(str(source), tmp_path / name, PackOptions(seed=seed))
        file = pq.ParquetFile(tmp_path / name / "train-00000-of-00001.parquet")
        orders.append(file.read().column("__key__").to_pylist())
        groups = [file.read_row_group(g).column("label").to_pylist() for g in range(file.num_row_groups)]
        assert max(map(len, groups)) <= 8 and sum(map(len, groups)) == 120
        assert np.mean([len(set(labels)) > 1 for labels in groups[:-1]]) > 0.8  # 3 of 81 blocks of 5 would be of one
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_the_places_in_the_footer_are_where_the_bytes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are empty, equal, or a part of another one."""
    monkeypatch.setattr(shard, "GROUP_BYTES", 3000)
    source = photos(tmp_path / "photos")
    whole = (source / "train/2/0.jpg").read_bytes()
    for i, data in enumerate((b"", whole, whole[: len(whole) // 2], whole[:1], b"\0", whole)):
        (source / "train/10" / f"{i}.jpg").write_bytes(data)
    pack(str(source), tmp_path / "packed", PackOptions())
    path = tmp_path / "packed/train-00000-of-00001.parquet"
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 5
    assert not file.metadata.row_group(0).column(0).is_stats_set  # they would hold whole images
    places = np.frombuffer(base64.b64decode(file.metadata.metadata[PLACES.encode()]), "<i8").reshape(-1, 2)
    data, images = path.read_bytes(), file.read().column("image").to_pylist()
    assert [data[start : start + size] for start, size in places.tolist()] == [image["bytes"] for image in images]
    assert anonymous(content(tmp_path / "packed", streaming=True)) == anonymous(content(source))


def test_without_validation_images_some_are_held_out(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for label, name in enumerate("ab"):
        for i in range(20):
            save(source / name / f"{i}.jpg", noise(100 * label + i))
    pack(str(source), tmp_path / "packed", PackOptions(val_fraction=0.25, seed=3))
    found = content(tmp_path / "packed")
    assert (len(found["train"]), len(found["val"])) == (30, 10)
    splits = load(config.Data(path=str(source), val_fraction=0.25), 3)
    assert sorted(splits.val["id"]) == sorted(name.removeprefix("val/") for _, _, name in found["val"])
    load(config.Data(path=str(tmp_path / "packed"), streaming=True), 0)  # what streaming asks for


def test_large_images_are_reduced_upright_and_small_and_corrupt_ones_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = photos(tmp_path / "photos", each=2)
    smooth = Image.fromarray(np.add.outer(np.arange(90), np.arange(160)).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(source / "train/2/turned.jpg", smooth, exif=exif, quality=95)
    save(source / "train/2/wide.png", smooth)
    alpha = save(source / "train/2/clear.png", Image.new("RGBA", (100, 200), (0, 0, 0, 0)))
    small = save(source / "train/2/small.png", smooth.resize((45, 45)))
    torn = source / "train/b/torn.jpg"
    torn.write_bytes(turned.read_bytes()[:600])
    document = pack(str(source), tmp_path / "packed", PackOptions(short=45, quality=95))
    found = {name: data for data, _, name in content(tmp_path / "packed")["train"]}
    wide, upright = decode(found["train/2/wide.png"]), decode(found["train/2/turned.jpg"])
    assert (wide.size, upright.size) == ((80, 45), (45, 80))
    expected = smooth.resize((80, 45), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(wide, dtype=int) - np.asarray(expected, dtype=int)).mean() < 2
    assert np.abs(np.asarray(upright.rotate(90, expand=True), dtype=int) - np.asarray(wide, dtype=int)).mean() < 3
    assert np.asarray(decode(found["train/2/clear.png"])).min() > 250 and alpha.stat().st_size
    assert decode(found["train/2/clear.png"]).size == (45, 90)
    assert found["train/2/small.png"] == small.read_bytes() and found["train/b/torn.jpg"] == torn.read_bytes()
    assert found["train/b/0.jpg"] == (source / "train/b/0.jpg").read_bytes()  # 40 x 30 is not enlarged
    bad = {key: why for entry in document["files"].values() for key, why in entry["undecodable"].items()}
    assert list(bad) == ["b/torn.jpg"] and "1 images cannot be decoded" in caplog.text
    assert "images/s" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_stops_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAUSES", (0.1,))
    source = photos(tmp_path / "photos")
    link = source / "train/2/gone.jpg"
    link.symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"train/2/gone\.jpg cannot be read: No such file.*run the same command"):
        pack(str(source), tmp_path / "packed", PackOptions())
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(ValueError, match=r"train/2/gone\.jpg is no regular file.*run the same command"):
        pack(str(source), tmp_path / "packed", PackOptions())
    assert not (tmp_path / "packed").exists()  # nothing is begun that could not be resumed
    link.unlink()
    link.symlink_to("/proc/self/mem")  # a regular file whose first byte cannot be read
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read \(Input/output error.*run the same command"):
        pack(str(source), tmp_path / "packed", PackOptions())
    assert not (tmp_path / "packed").exists()


def test_files_that_change_between_two_commands_are_noticed(tmp_path: Path) -> None:
    """The same names and sizes; held-out images, too."""
    source, to = tmp_path / "photos", tmp_path / "packed"
    for label, name in enumerate("ab"):
        for i in range(5):
            save(source / name / f"{i}.bmp", noise(100 * label + i))
    pack(str(source), to, PackOptions())
    for path in sorted(source.rglob("*.bmp")):
        data, status = path.read_bytes(), path.stat()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match="packed with images of other sizes or contents, or image files"):
            pack(str(source), to, PackOptions())
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    pack(str(source), to, PackOptions())


def test_images_inside_tables_that_change_between_two_commands_are_noticed(tmp_path: Path) -> None:
    """Other sizes of any image, at the same ids and labels; other bytes of the same size where all are looked at."""
    source, to = tmp_path / "table", tmp_path / "packed"
    source.mkdir()
    files = [encode(noise(i), quality=90) for i in range(2 * packs.SAMPLE)]

    def write(contents: list[bytes]) -> None:
        rows = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(contents)]
        for split, some in (("train", slice(8, None)), ("validation", slice(8))):
            table = pa.table({"image": rows[some], "label": ["a", "b"] * (len(rows[some]) // 2)})
            pq.write_table(table, source / f"{split}.parquet")

    write(files)
    first = pack(str(source), to, PackOptions())
    for place in (0, 1, 70, 127):
        write([*files[:place], encode(noise(place), quality=60), *files[place + 1 :]])
        with pytest.raises(ValueError, match="packed was packed with images of other sizes or contents"):
            pack(str(source), to, PackOptions())
    write([data[:-30] + bytes(28) + data[-2:] for data in files])  # the last pixels
    with pytest.raises(ValueError, match="packed was packed with images of other sizes or contents"):
        pack(str(source), to, PackOptions())
    write(files)
    assert pack(str(source), to, PackOptions()) == first


def test_what_cannot_be_resumed_is_one_clear_error(tmp_path: Path) -> None:
    source, to = photos(tmp_path / "photos", each=2), tmp_path / "packed"
    (tmp_path / "file").touch()
    for wrong in ("file", "file/below"):
        with pytest.raises(ValueError, match=rf"--to .*/{wrong}: .*/file is a file; name a folder"):
            pack(str(source), tmp_path / wrong, PackOptions())
    pack(str(source), to, PackOptions())
    whole = json.loads((to / "pack.json").read_text())
    for name in ("pack.json", "packing.json"):
        for text in ("{", "[]", "{}", json.dumps(whole | {"files": {"a": 1}}), "\udcff"):
            (to / name).write_bytes(text.encode(errors="surrogateescape"))
            with pytest.raises(ValueError, match=rf"{to}/{name} is corrupt \(.*delete {to}, or name another --to"):
                pack(str(source), to, PackOptions())
        (to / name).unlink()


# --- resuming ---


def shards(to: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in to.glob("*.parquet")}


def command(source: Path, to: Path, *more: str) -> list[str]:
    program = "from cls.commands.main import main; main()"
    return [sys.executable, "-c", program, "pack", str(source), "--to", str(to), "--shard-mb", "1", "--json", *more]


@pytest.mark.integration
def test_a_killed_packing_is_resumed(tmp_path: Path) -> None:
    """SIGKILL in the middle; the next command keeps the finished shards and ends with those of an undisturbed one."""
    source, to = tmp_path / "photos", tmp_path / "packed"
    for label, name in enumerate("ab"):
        for i in range(60):
            save(source / name / f"{i:03d}.bmp", noise(1000 * label + i, 200, 180))  # 108 kB, and none to compress
    env = environment(HF_DATASETS_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command(source, to), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(shards(to)) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = shards(to)
    assert 3 <= len(before) < 13 and (to / "packing.json").exists() and not (to / "pack.json").exists()
    noted = json.loads((to / "packing.json").read_text())["files"]
    (to / ".train-00099-of-00099.parquet.1.tmp").write_bytes(b"half a shard of a process that was killed")
    document = pack(str(source), to, PackOptions(shard_mb=1))
    after = shards(to)
    assert all(after[name] == before[name] for name in noted) and len(after) > len(before)
    undisturbed = pack(str(source), tmp_path / "undisturbed", PackOptions(shard_mb=1))
    assert document["files"] == undisturbed["files"]
    assert sorted(path.name for path in to.iterdir()) == sorted(p.name for p in (tmp_path / "undisturbed").iterdir())
    assert anonymous(content(to)) == anonymous(content(source))


@pytest.mark.integration
def test_a_second_packing_into_the_folder_is_rejected_while_the_first_runs(tmp_path: Path) -> None:
    source, to = photos(tmp_path / "photos", each=3), tmp_path / "packed"
    code = (
        "import sys, time; from pathlib import Path; from cls.commands import pack as packs; "
        "from cls.commands.options import PackOptions; "
        "packs._write = lambda *_: (print('begun', flush=True), time.sleep(100)); "
        "packs.pack(sys.argv[1], Path(sys.argv[2]), PackOptions())"
    )
    env = environment(HF_DATASETS_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
    first = subprocess.Popen([sys.executable, "-c", code, source, to], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "begun\n"
        (to / ".train-00000-of-00001.parquet.1.tmp").write_bytes(b"the shard that it writes")
        before = sorted(to.iterdir())
        with pytest.raises(ValueError, match=rf"--to: {to} is being written by process {first.pid} on .*: wait for it"):
            pack(str(source), to, PackOptions())
        assert sorted(to.iterdir()) == before
    finally:
        first.kill()
        first.wait()
    document = pack(str(source), to, PackOptions())  # its lock is taken over
    assert sorted(path.name for path in to.iterdir()) == sorted(["pack.json", *document["files"]])


def test_a_finished_packing_is_verified_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, to = photos(tmp_path / "photos"), tmp_path / "packed"
    first = pack(str(source), to, PackOptions())
    before = shards(to)
    assert pack(str(source), to, PackOptions()) == first and shards(to) == before
    assert "3 finished shards" in capsys.readouterr().err
    path = to / "val-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    (to / "test-00000-of-00001.parquet").unlink()
    assert pack(str(source), to, PackOptions()) == first
    assert path.read_bytes() == whole and shards(to)["train-00000-of-00001.parquet"] == before[
        "train-00000-of-00001.parquet"
    ]  # fmt: skip


def test_a_kill_while_a_corrupt_shard_is_packed_again_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to = photos(tmp_path / "photos", each=2), tmp_path / "packed"
    first = pack(str(source), to, PackOptions())
    (to / "val-00000-of-00001.parquet").write_bytes(b"damaged")
    before = shards(to)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packs, "write_shard", killed)
        pack(str(source), to, PackOptions())
    assert not (to / "pack.json").exists() and (to / "packing.json").exists()
    assert pack(str(source), to, PackOptions()) == first
    changed = {name for name, time in shards(to).items() if time != before[name]}
    assert changed == {"val-00000-of-00001.parquet"} and not (to / "packing.json").exists()
    (to / "packing.json").write_bytes((to / "pack.json").read_bytes())  # a kill just before it would have been deleted
    assert pack(str(source), to, PackOptions()) == first and not (to / "packing.json").exists()


def test_a_different_packing_in_the_same_folder_is_rejected_with_the_option_named(tmp_path: Path) -> None:
    source, to = photos(tmp_path / "photos"), tmp_path / "packed"
    pack(str(source), to, PackOptions())
    for how, message in (
        (PackOptions(short=20), r"packed was packed with --short 0, not 20: name another --to"),
        (PackOptions(seed=1), r"--seed 0, not 1"),
        (PackOptions(shard_mb=9), r"--shard-mb 256, not 9"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(str(source), to, how)
    other = photos(tmp_path / "other")
    with pytest.raises(ValueError, match=r"source '.*photos', not '.*other'"):
        pack(str(other), to, PackOptions())
    save(source / "train/2/new.jpg", noise(1))
    with pytest.raises(ValueError, match=r"packed with other images"):
        pack(str(source), to, PackOptions())
    with pytest.raises(ValueError, match=r"is not empty"):
        pack(str(source), other, PackOptions())
    with pytest.raises(ValueError, match=r"lies inside"):
        pack(str(source), source / "packed", PackOptions())
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match=r"lies inside"):
        pack(str(source), tmp_path / "link" / "packed", PackOptions())
    with pytest.raises(ValueError, match=r"--to /proc/packed: .* name another folder"):
        pack(str(source), Path("/proc/packed"), PackOptions())
    for wrong in ({"short": -1}, {"quality": 0}, {"shard_mb": 0}):
        with pytest.raises(ValueError, match="--"):
            PackOptions(**wrong)


def test_a_kill_in_the_first_moments_blocks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ~ is the home directory, which a shell does not expand after an =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    to = tmp_path / "packed"
    to.mkdir()
    for name in (".packing.json.vm-12.tmp", f"{packs.LOCK}.{16 * '0'}"):
        (to / name).write_bytes(b"half")
    assert pack(str(photos(tmp_path / "photos")), Path("~/packed"), PackOptions())["folder"] == str(to)
    (to / "pack.json").unlink()
    with pytest.raises(ValueError, match="is not empty and holds no interrupted packing"):
        pack(str(tmp_path / "photos"), to, PackOptions())


def test_what_was_written_is_read_back_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a byte between writing and reading: no shard gets its name."""
    source, to, read = photos(tmp_path / "photos"), tmp_path / "packed", shard._read_back

    def spoilt(path: Path) -> Any:
        data = bytearray(path.read_bytes())
        at = data.index(b"\xff\xd8") + 700  # inside the first image
        data[at] ^= 1
        path.write_bytes(data)
        return read(path)

    monkeypatch.setattr(shard, "_read_back", spoilt)
    with pytest.raises(OSError, match="verification failed"):
        pack(str(source), to, PackOptions())
    assert not shards(to) and [path.name for path in to.iterdir()] == ["packing.json"]
    monkeypatch.undo()


@pytest.mark.integration
def test_the_command_prints_a_summary_and_a_document(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", each=3)
    env = environment(HF_DATASETS_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command(source, tmp_path / "packed", "--short", "20"), env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == str(tmp_path / "packed") and document["options"]["short"] == 20
    assert "3 classes" in done.stderr and "images/s" in done.stderr
    counts = Counter(name.split("-")[0] for name in document["files"])
    assert counts == {"train": 1, "val": 1, "test": 1}


@pytest.mark.soak
def test_packed_folders_are_read_faster(clothing: Path, tmp_path: Path) -> None:
    """Prints images per second of CPU, read without decoding; nothing is asserted of time."""
    packed = tmp_path / "packed"
    pack(str(clothing), packed, PackOptions(shard_mb=32))
    found: dict[str, list[float]] = {}
    for _ in range(3):
        for name, path, streaming in (
            ("folder", clothing, False), ("packed", packed, False), ("packed, streamed", packed, True),
        ):  # fmt: skip
            images = images_of(load(config.Data(path=str(path), streaming=streaming), 0).train)
            order = images.sampler(0, False)
            begun, size = time.process_time(), 0
            for first in range(0, 2048, 64):
                size += sum(len(data) for data in images.read([order.row(first + i) for i in range(64)]))
            found.setdefault(name, []).append(2048 / (time.process_time() - begun))
            assert size > 2048 * 5000
    folder = sorted(found["folder"])[1]
    print("; ".join(f"{name} {sorted(r)[1]:.0f} images/s ({sorted(r)[1] / folder:.2f})" for name, r in found.items()))
