"""Any damage to any file of a run directory: each reader works or ends in one line that names the file."""

import dataclasses
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cls.commands.audit import audit_run
from cls.commands.sweep.table import show_directory
from cls.config import Run, change
from cls.data.corrupt_images import CorruptImages
from cls.data.readers import images_of
from cls.data.sources import Splits, load
from cls.evaluation.compare import compare
from cls.evaluation.model_file import read_header
from cls.evaluation.predictions import read_parquet
from cls.evaluation.report.build import write_page
from cls.evaluation.report.thumbnails import Pictures
from cls.evaluation.run_record import RunRecord
from cls.evaluation.trained_model import network
from cls.runtime.exit import DataError, raised_by_us
from cls.runtime.lock import in_use
from cls.tracking import goodput
from cls.tracking.events import EventLog, read_events
from cls.tracking.metrics_log import read_rows, rewind
from cls.tracking.run_dir import open_run_dir
from cls.tracking.run_files import read_run
from cls.tracking.run_status import state_of
from cls.training.checkpoint import restore
from cls.training.resume import keep_data
from cls.training.state import State, build_state
from cls.training.steps import Steps
from tests.runs.test_any_run import start
from tests.tracking.test_run_dir import CLUSTER

# --- a real run, and what reads it ---


@dataclasses.dataclass
class Whole:
    """A finished run of the smallest network, and what a continued one has in memory."""

    out: Path
    run: Run
    splits: Splits
    state: State

    @property
    def files(self) -> list[str]:
        found = [str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file()]
        return sorted(name for name in found if not name.endswith((".png", ".html")))  # those are only written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Whole:
    data = tmp_path_factory.mktemp("damage") / "photos"
    shutil.copytree(photos, data)
    (data / "train" / "0" / "corrupt.jpg").write_bytes(b"no image")
    (data.parent / "runs").mkdir()
    words = ["digits", "--data.path", str(data), "--data.size", "32", "--data.workers", "0", "--data.max-corrupt", "1",
             "--model.backbone", "timm/test_resnet", "--train.batch", "16", "--train.micro-batch", "8",
             "--train.epochs", "2", "--track.wandb", "disabled", "--track.ledger", "True"]  # fmt: skip
    out = data.parent / "runs" / "whole"
    code, said = start([*words, "--out", str(out)])
    assert code in (0, None), said
    run = read_run(out / "config.yaml")
    splits = load(run.data, run.seed)
    return Whole(out, run, splits, build_state(run, splits.classes, Steps(len(splits.train), run.train), CLUSTER))


def resume(whole: Whole, out: Path) -> None:
    """As train.py starts: the directory, the images, the checkpoint, the records."""
    longer = change(dataclasses.replace(whole.run, out=str(out)), train={"max_steps": 3})
    with open_run_dir(longer, CLUSTER) as folder:
        keep_data(folder, whole.splits, CLUSTER)
        first = restore(out / "checkpoints", whole.state, CLUSTER)
        goodput.lost(read_rows(out), rewind(out, first))
        read_events(out)
        CorruptImages(out, images_of(whole.splits.train), 1.0, CLUSTER)


def report(whole: Whole, out: Path) -> None:
    write_page(RunRecord(out), Pictures(), out / "report.html")


def evaluate(whole: Whole, out: Path) -> None:
    best = out / "best" / "model.safetensors"
    if best.is_file():  # load_trained asks first
        read_header(best)
        network(best)


READERS: dict[str, Callable[[Whole, Path], object]] = {
    "report": report,
    "compare": lambda whole, out: compare([str(out)]),
    "audit": lambda whole, out: audit_run(str(out)),
    "evaluate": evaluate,
    "sweep": lambda whole, out: show_directory(out.parent),
    "resume": resume,  # the last one: it writes
}


def check_readers(whole: Whole, out: Path, name: str) -> None:
    """Each reader works, or raises an error of ours in one line that names the file; what it says differs from other
    data or from the command line names the run directory.
    """
    for reader, read in READERS.items():
        try:
            read(whole, out)
        except (ValueError, DataError) as error:
            said = f"{reader} of {name}: {type(error).__name__}: {error}"
            assert raised_by_us(error), said
            other = (
                str(error).startswith((f"out: {out} holds a run with another", "data.path: ")) or name == "config.yaml"
            )
            assert "\n" not in str(error) or other, said
            assert str(out / name) in str(error) or other or isinstance(error, DataError), said
            assert str(out.parent) in str(error) or name == "config.yaml", said  # its fields are named


def damage(path: Path, name: str, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Other content, no file, or a folder in its place."""
    content = path.read_bytes()
    path.unlink()  # it may be a link to the whole run's
    if not (kind := draw(st.integers(0, 9))):
        (path / "x").mkdir(parents=True)
    elif kind > 1:
        path.write_bytes(damaged(name, content, draw))


def copy_of(whole: Whole, out: Path) -> None:
    def linked(source: str, to: str) -> None:
        """Large files are never written in place."""
        (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, to)

    shutil.copytree(whole.out, out, copy_function=linked)


# --- damage ---

EXAMPLES = 120  # 0.3 s each

STRANGE = [None, True, "x", "", -1, 0, 3, 99, 1.5, float("nan"), 10**400, [], [1], {}, {"a": 1}, "\ud800"]


def change_json(document: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The document with one value in it replaced, or one key or item taken away."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 4)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        key = draw(st.sampled_from(keys))
        copy = dict(document) if isinstance(document, dict) else list(document)
        if draw(st.integers(0, 6)):
            copy[key] = change_json(document[key], draw)
        else:
            del copy[key]
        return copy
    return draw(st.sampled_from(STRANGE))


def change_header(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """A safetensors file with other metadata."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    facts = header["__metadata__"]
    key = draw(st.sampled_from(sorted(facts)))
    value = facts[key]
    try:
        facts[key] = json.dumps(change_json(json.loads(value), draw))
    except ValueError:  # the configuration
        facts[key] = yaml.safe_dump(change_json(yaml.safe_load(value), draw))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def change_parquet(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """Predictions with another column or other metadata."""
    table = pq.read_table(pa.BufferReader(data))
    if draw(st.booleans()):
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        key = draw(st.sampled_from(["classes", "loss"]))
        facts[key] = draw(st.sampled_from(["", "no JSON", "3", "[]", "[1, 2]", '["a"]', '{"a": 1}', "nan"]))
        table = table.replace_schema_metadata(facts)
    else:
        name = draw(st.sampled_from(table.column_names))
        n = len(table)
        row = [[1.0]] * (n - 1) + [[1.0, 2.0]]
        columns = [list(range(n)), ["x"] * n, [None] * n, [1.5] * n, row, [[0.1, None]] * n, [{"a": 1}] * n, None]
        column = draw(st.sampled_from(columns))
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if column is not None:
            table = table.add_column(place, name, pa.array(column))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def damaged(name: str, data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """Other content for a file: of the same form with another value, or bytes that were lost or changed."""
    form = draw(st.sampled_from(["value", "value", "bytes", "cut", "line", "text"]))
    if form == "value" and name.endswith(".safetensors") and name.startswith("best"):
        return change_header(data, draw)
    if form == "value" and name.endswith(".parquet"):
        return change_parquet(data, draw)
    if form == "value" and name.endswith(".json"):
        return json.dumps(change_json(json.loads(data), draw)).encode()
    if form == "value" and name.endswith(".yaml"):
        return yaml.safe_dump(change_json(yaml.safe_load(data), draw)).encode("utf-8", "surrogatepass")
    lines = data.split(b"\n")
    place = draw(st.integers(0, len(lines) - 1))
    if form == "value" and name.endswith(".jsonl") and lines[place]:
        lines[place] = json.dumps(change_json(json.loads(lines[place]), draw)).encode()
        return b"\n".join(lines)
    if form == "line":
        lines[place : place + 1] = draw(
            st.sampled_from([[], [lines[place]] * 2, [b"x"], [b""], [b"\xff\xfe"], [b"[]"]])
        )
        return b"\n".join(lines)
    if form == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if form == "text":
        return draw(
            st.sampled_from([b"", b"\0", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00", b"a,b\n1,2\n", b"[" * 9999])
        )
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3)) if changed else 0):
        changed[draw(st.integers(0, min(len(changed) - 1, 4000)))] = draw(st.integers(0, 255))
    return bytes(changed)


def try_damage(whole: Whole, factory: pytest.TempPathFactory, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        out = factory.mktemp("damaged") / "run"
        name = data.draw(st.sampled_from(whole.files))
        copy_of(whole, out)
        damage(out / name, name, data.draw)
        check_readers(whole, out, name)
        shutil.rmtree(out.parent)

    one()


def test_some_damage_is_one_line_that_names_the_file(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> None:
    try_damage(whole, tmp_path_factory, EXAMPLES // 4)


@pytest.mark.soak
def test_any_damage_is_one_line_that_names_the_file(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> None:
    try_damage(whole, tmp_path_factory, EXAMPLES)


# --- damage that has happened ---


@pytest.fixture
def out(whole: Whole, tmp_path: Path) -> Path:
    copy_of(whole, tmp_path / "run")
    return tmp_path / "run"


def rejected(call: Callable[[], object], path: Path, words: str = "") -> None:
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert raised_by_us(caught.value) and str(path) in said and words in said and "\n" not in said, said


N = 4
COLUMNS = {
    "id": pa.array(["a", "b", "c", "d"]), "label": pa.array(["x", "y", "x", "y"]), "error": pa.array([""] * N),
    "predicted": pa.array(["x"] * N), "probs": pa.array([[0.5, 0.5]] * N),
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "facts", "words"),
    [
        ({}, {"classes": "x, y"}, "JSONDecodeError"),
        ({}, {"classes": "3"}, "no list of names"),
        ({}, {"classes": "[1, 2]"}, "no list of names"),
        ({}, {"classes": '["x", "x"]'}, "different names"),
        ({}, {"classes": '["x", "z"]'}, "label 'y' is none of its classes"),
        ({}, {"loss": "low"}, "could not convert"),
        ({"probs": pa.array(["0.5"] * N)}, {}, "column probs is string"),
        ({"probs": pa.array([0.5] * N)}, {}, "column probs is double"),
        ({"probs": pa.array([[0.5, 0.5]] * 3 + [[1.0]])}, {}, "does not have 2 numbers"),
        ({"probs": pa.array([[0.5, 0.5]] * 2 + [[0.5], [0.5, 0.5, 0.5]])}, {}, "does not have 2 numbers"),
        ({"probs": pa.array([[0.5, None]] * N)}, {}, "does not have 2 numbers"),
        ({"id": pa.array([1, 2, 3, 4])}, {}, "column id is int64"),
        ({"id": pa.array(["a", None, "c", "d"])}, {}, "column id has empty rows"),
        ({"error": pa.array([None] * N)}, {}, "column error has empty rows"),
        ({"label": pa.array([0, 1, 0, 1])}, {}, "column label is int64"),
    ],
)
def test_predictions_of_other_types_are_named(
    tmp_path: Path, columns: dict[str, pa.Array], facts: dict[str, str], words: str
) -> None:
    path = tmp_path / "val.parquet"
    table = pa.table(COLUMNS | columns)
    pq.write_table(table.replace_schema_metadata({"classes": '["x", "y"]', "loss": "1.0"} | facts), path)
    rejected(lambda: read_parquet(path), path, words)
    whole = pa.table(COLUMNS).replace_schema_metadata({"classes": '["x", "y"]', "loss": "1.0"})
    pq.write_table(whole, path)
    assert read_parquet(path).ids == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "text", [b"[]", b"[1, 2]", b"no JSON", b"null", b'{"train": 3}', b'{"train": {"images": "49"}}']
)
def test_data_json_of_another_form_is_named(whole: Whole, out: Path, text: bytes) -> None:
    (out / "data.json").write_bytes(text)
    for reader in ("report", "audit", "resume"):
        rejected(lambda reader=reader: READERS[reader](whole, out), out / "data.json")


def test_a_run_of_an_earlier_version_is_read_and_resumed(whole: Whole, out: Path) -> None:
    """It wrote lives.jsonl, in which an attempt was called a life, in place of events.jsonl."""
    events, audited = read_events(out), audit_run(str(out))
    report(whole, out)
    page = (out / "report.html").read_text()
    early = {"attempt": "life", "previous_end": "heard"}
    lines = [json.dumps({early.get(name, name): value for name, value in event.items()}) + "\n" for event in events]
    (out / "events.jsonl").unlink()
    (out / "lives.jsonl").write_text("".join(lines) + '{"life": 1, "ev')  # a kill inside a line
    assert read_events(out) == events and "previous_end" in events[0] and audit_run(str(out)) == audited
    report(whole, out)
    written = r"Written [^<]*"
    assert re.sub(written, "", (out / "report.html").read_text()) == re.sub(written, "", page)
    assert show_directory(out.parent)[0]["attempts"] == 1
    resume(whole, out)
    log = EventLog(out, 1)
    log.add("start", **{name: events[0][name] for name in ("step", "processes", "device", "host")})
    log.close()
    assert read_events(out)[:-1] == events and read_events(out)[-1]["attempt"] == 1
    assert [row["attempt"] for row in goodput.attempts(read_events(out))] == [0, 1]
    with open_run_dir(dataclasses.replace(whole.run, out=str(out)), CLUSTER) as folder:
        assert folder.attempt == 2
    (out / "lives.jsonl").write_text("{}\n" + "".join(lines))
    rejected(lambda: report(whole, out), out / "lives.jsonl", "line 1")


@pytest.mark.parametrize(
    "change_of",
    [
        lambda event: {"attempt": None} | {k: v for k, v in event.items() if k != "attempt"},
        lambda event: event | {"attempt": "0"},
        lambda event: {key: event[key] for key in ("attempt", "event", "time")},
        lambda event: event | {"step": None},
        lambda event: event | {"time": "now"},
        lambda event: event | {"event": 3},
        lambda event: event | {"began": None} if event["event"] == "start" else event | {"clock": {}},
        lambda event: [event],
    ],
)
def test_events_without_their_fields_are_named(whole: Whole, out: Path, change_of: Callable[[Any], Any]) -> None:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    for number in range(len(lines)):
        changed = [change_of(event) if i == number else event for i, event in enumerate(lines)]
        (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in changed))
        rejected(lambda: report(whole, out), out / "events.jsonl", f"line {number + 1}")


def test_a_configuration_that_is_not_utf_8_is_named(whole: Whole, out: Path) -> None:
    (out / "config.yaml").write_bytes("out: läufe".encode("latin-1"))
    for reader in ("report", "audit", "resume", "sweep"):
        rejected(lambda reader=reader: READERS[reader](whole, out), out / "config.yaml", "not UTF-8")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"classes": "[1, 2, 3]"}, "classes are not names"),
        ({"classes": '["a", "a"]'}, "different names"),
        ({"classes": "3"}, "classes are not names"),
        ({"statistics": "[[0.5], [0.5]]"}, "three numbers"),
        ({"statistics": "[[0.5, 0.5, 0.5], [0.5, 0, 0.5]]"}, "out of range"),
        ({"fallback": "99"}, "the fallback class is 99 of 12"),
        ({"fallback": "-1"}, "the fallback class is -1"),
        ({"config": "train: {batch: 0}"}, "train.batch is 0"),
    ],
)
def test_a_header_of_other_types_is_named(out: Path, facts: dict[str, str], words: str) -> None:
    path = out / "best" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= facts
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    rejected(lambda: read_header(path), path, words)


def test_missing_and_misplaced_files_are_named_on_resume(whole: Whole, out: Path) -> None:
    kept = (out / "classes.txt").read_bytes()
    (out / "classes.txt").unlink()
    rejected(lambda: resume(whole, out), out / "classes.txt")
    (out / "classes.txt").write_bytes(kept)
    for name in ("stop", "lock", "metrics.lost.jsonl", "exit.json"):
        kept = (out / name).read_bytes() if (out / name).exists() else b""
        (out / name).unlink(missing_ok=True)
        (out / name).mkdir()
        rejected(lambda: resume(whole, out), out / name, "is a directory")
        (out / name).rmdir()
        if kept:
            (out / name).write_bytes(kept)
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("mine")
    rejected(lambda: resume(whole, out), out / "checkpoints", "is a file")


@pytest.mark.parametrize("row", ["x,0,a,", "0,1.5,a,", "-1,0,a,", f"{'9' * 30},0,a,"])
def test_an_index_of_the_ledger_that_is_no_number_is_named(whole: Whole, out: Path, row: str) -> None:
    path = out / "ledger" / "0000-0000.csv"
    path.write_text(path.read_text() + row + "0" * 32 + "\n")
    rejected(lambda: audit_run(str(out)), path, "is not a step or sample index")


@pytest.mark.parametrize("lock", ['{"host": "HOST", "pid": "seven", "job": "", "birth": ""}', "[]", "{}", "\xff", "["])
def test_a_lock_of_another_content_has_no_owner(whole: Whole, out: Path, lock: str) -> None:
    path = out / "lock"
    path.write_text(lock.replace("HOST", os.uname().nodename))
    os.utime(path, (1, 1))
    assert not in_use(out) and state_of(out) == "done"
    resume(whole, out)
    assert not path.exists()


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", '{"outcome": 3}', "[" * 9999])
def test_an_exit_record_of_another_form_is_none(out: Path, text: str) -> None:
    (out / "exit.json").write_text(text)
    assert state_of(out) == "killed"
    show_directory(out.parent)


def test_a_table_of_runs_is_shown_where_it_cannot_be_written(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else's folder of runs, or a full disk."""
    (out.parent / "table.md").mkdir()
    assert [row["outcome"] for row in show_directory(out.parent)] == ["done"]
    said = capsys.readouterr().err
    assert f"table.md and .csv were not written into {out.parent} (Is a directory)" in said and "also in" not in said
