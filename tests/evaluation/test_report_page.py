"""report.html: read as text, and used in a real browser (Debian's chromium, driven by playwright)."""

import base64
import io
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cls import recipes
from cls.commands.evaluate import evaluate_images
from cls.commands.options import EvaluateOptions, ReportOptions
from cls.commands.report import report_run
from cls.config import change, to_yaml
from cls.data.dataset import ViewDataset
from cls.data.loader import load_batch, preprocess
from cls.data.readers import images_of
from cls.data.sources import load
from cls.distributed.world import World
from cls.evaluation import ensemble_record
from cls.evaluation.ensemble_record import EnsembleRecord
from cls.evaluation.inference import Predictor
from cls.evaluation.metrics import accuracy, confusion, per_class, wrong
from cls.evaluation.model_file import best_header
from cls.evaluation.predictions import Predictions, write_parquet
from cls.evaluation.report import neighbors
from cls.evaluation.report.build import document, ensemble_document, write_page
from cls.evaluation.report.charts import POINTS, thin
from cls.evaluation.report.thumbnails import SIDE, Pictures, thumbnail, thumbnails
from cls.evaluation.run_record import RunRecord
from cls.evaluation.stats import wilson
from cls.models.build import build_model
from cls.runtime.signals import StopSignal
from cls.tracking.events import EventLog
from cls.tracking.run_data import keep, look
from cls.transforms.jpeg import Decoder
from cls.transforms.ops import view_ops
from tests.harness import ROOT

CHROMIUM = shutil.which("chromium")
EVIL = (
    '"><img src=x onerror=alert(1)>', "<b>bold & 'quoted'", "</script><script>document.title='hacked'<",
    "{{ 7 * 7 }}", "from_$5_to_$10",
)  # fmt: skip
"""Class folders; the slash of a closing tag cannot be in a file name and is replaced there."""


def folder_name(text: str) -> str:
    return text.replace("/", "∕")


def predictions(ids: list[str], labels: np.ndarray, classes: tuple[str, ...], seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(ids), len(classes)))
    logits[np.arange(len(ids)), labels] += 1.0
    probs = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    return Predictions(
        ids=ids, labels=labels.astype(np.int64), probs=probs, errors=[""] * len(ids), classes=classes, loss=1.25
    )


def record(out: Path, steps: int) -> list[dict[str, float]]:
    """metrics.jsonl of four epochs, and its rows."""
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "epoch": (step - 1) * 4 // steps + 1, "time": 1e9 + step, "train/loss": 3 / step,
                     "train/lr": 1e-3, "train/images_per_second": 100.0 + step % 7})  # fmt: skip
        if step % (steps // 4) == 0:
            rows.append({"step": step, "epoch": step * 4 // steps, "time": 1e9 + step, "val/accuracy": 0.2 + step / 500,
                         "val/loss": 2 - step / 100})  # fmt: skip
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def begin(out: Path, **fields: Any) -> None:
    """The first files of a run directory, and an attempt that was killed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(to_yaml(change(recipes.get("digits"), **fields)))
    events = EventLog(out, 0)
    events.add("start", step=0, processes=2, sharded=False, device="CPU", host="<i>node</i>", job="", nodes="",
              command="train.py digits --track.name='<u>'", versions={"torch": "9.9"}, began=1e9, queue=3.0, lost=0,
              previous_end=0.0)  # fmt: skip
    events.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on photos whose classes and files have hostile names, with test-time views."""
    root = tmp_path_factory.mktemp("evil")
    for split, counts in (("train", (3, 2, 4, 4, 4)), ("val", (12,) * 5)):
        for number, name in enumerate(EVIL):
            inside = root / "data" / split / folder_name(name)
            inside.mkdir(parents=True)
            for i in range(counts[number]):
                picture = Image.new("HSV", (60, 40), (50 * number, 200, 100 + 9 * i)).convert("RGB")
                picture.save(inside / f"{i}<svg onload=alert(2)>'\".jpg")
    out = root / "run"
    data = {"path": str(root / "data"), "size": 32, "workers": 0, "eval_frame": "squash"}
    begin(out, data=data, augment={"tta": ("identity", "hflip")})
    splits = load(RunRecord(out).run.data, 0)
    val = splits.val
    write_parquet(
        out / "predictions" / "val.parquet", predictions(val["id"], np.array(val["label"]), splits.classes, 1)
    )
    views = predictions(val["id"], np.array(val["label"]), splits.classes, 2)
    write_parquet(out / "predictions" / "val_tta.parquet", views)
    keep(out, look(splits))
    (out / "exit.json").write_text(json.dumps({"outcome": "done"}))
    record(out, 40)
    report_run(str(out), ReportOptions(), StopSignal())
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Skip without a browser; on CI that is a failure."""
    problem = "" if CHROMIUM else "needs chromium: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        problem = "needs playwright: pip install playwright"
    if problem and os.environ.get("CI"):
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    with sync_playwright() as driver:
        # the sandbox needs rights that a container does not give; the pages are ours
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Shown:
    """A page in a tab of its own, with all it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}} | options)
        self.tab = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.tab.goto(file.as_uri())

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def outside(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(("file:", "data:"))]

    def matrix(self) -> dict[str, Any]:
        data = self.tab.evaluate("({...document.getElementById('matrix').dataset})")
        return {key: float(value) if re.fullmatch(r"[\d.]+", value) else value for key, value in data.items()}

    def cell(self, row: float, column: float, classes: int) -> tuple[float, float]:
        """Where a cell's middle is in the window."""
        now, box = self.matrix(), self.tab.locator("#matrix").bounding_box()
        size = now["side"] * now["zoom"] / classes
        x, y = (column + 0.5 - now["x"]) * size, (row + 0.5 - now["y"]) * size
        return box["x"] + now["left"] + x, box["y"] + now["top"] + y


@pytest.fixture
def shown(browser: Any, run: Path) -> Iterator[Shown]:
    with Shown(browser, run / "report.html") as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        yield found
        assert not found.outside and not found.complaints


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_opens_without_network_complaint_or_sideways_scrolling(
    browser: Any, run: Path, width: int, scheme: str
) -> None:
    options = {"viewport": {"width": width, "height": 700}, "color_scheme": scheme}
    with Shown(browser, run / "report.html", **options) as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        assert not found.outside and not found.complaints
        assert found.tab.evaluate("document.documentElement.scrollWidth") <= width
        paper = found.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")


@pytest.mark.integration
def test_hostile_names_stay_text(shown: Shown, run: Path) -> None:
    tab = shown.tab
    names = tab.locator("#class-table tbody th").all_text_contents()
    assert sorted(names) == sorted(map(folder_name, EVIL))
    assert tab.title() == "run – cls report"
    assert (
        tab.evaluate("document.querySelectorAll('svg[onload], img[onerror], u, i:not([class]):not([style])').length")
        == 0
    )
    assert tab.evaluate("document.scripts.length") == 6  # four charts, the data and the program
    p = RunRecord(run).val
    assert p is not None
    first = int(wrong(p)[0])
    assert p.ids[first] in tab.locator("#wrong-0 .file").text_content()
    assert "<i>node</i>" in tab.locator("#time td").all_text_contents()
    assert "--track.name='<u>'" in tab.locator("#setup pre").first.text_content()


@pytest.mark.integration
def test_markup_that_got_in_could_fetch_and_run_nothing(browser: Any, run: Path, tmp_path: Path) -> None:
    """The second wall: with the escaping defeated on purpose."""
    text = (run / "report.html").read_text()
    evil = "<img src='http://127.0.0.1:9/a.png'><script>document.title='hacked'</script>"
    (tmp_path / "report.html").write_text(text.replace("<main>", f"<main>{evil}", 1))
    with Shown(browser, tmp_path / "report.html") as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        assert found.tab.title() == "run – cls report"
        assert sum("Content Security Policy" in text for text in found.complaints) == 2


@pytest.fixture
def ensemble(run: Path, tmp_path: Path) -> Path:
    """Two members with hostile names; the photos are the run's."""
    p = RunRecord(run).val
    assert p is not None
    one = {"run": "runs/<u>a", "folder": str(run), "sha256": "0123456789abcdef", "recipe": "<i>best", "seed": 3,
           "backbone": "timm/x", "size": 96, "accuracy": 0.5, "gain": 0.0123, "low": -0.01, "high": 0.03}  # fmt: skip
    facts = {"rule": ensemble_record.RULE, "loss_is": "mean of -log", "views": ["identity"]}
    facts |= {"members": [one, one | {"seed": 4, "gain": -0.5}]}
    ensemble_record.write(tmp_path / "both", facts, {"val": p})
    report_run(str(tmp_path / "both"), ReportOptions(), StopSignal())
    return tmp_path / "both"


def test_the_page_of_an_ensemble_has_members_instead_of_curves(run: Path, ensemble: Path, tmp_path: Path) -> None:
    text, p = (ensemble / "report.html").read_text(), RunRecord(run).val
    assert p is not None
    shown = re.findall(r'<section id="(\w+)"', text)
    assert shown == ["summary", "members", "confusion", "classes", "wrong", "calibration"]
    summary = ensemble_document(EnsembleRecord(ensemble), Pictures())["summary"]
    facts = dict(summary)
    assert facts["gain over its best member"] == "+1.2 points (95% interval -1.0 to +3.0)"
    assert facts["validation accuracy"].startswith(f"{100 * accuracy(p):.2f}%")
    assert facts["loss"] == f"{p.loss:.4f} (mean of -log)" and facts["networks"] == "timm/x at 96 px"
    assert text.count('<img class="photo" src="data:image/jpeg') == len(wrong(p)) and "-50.0</td>" in text
    assert "Without heat maps, which are of one network" in text
    assert f"Without heat maps: {run}/best/model.safetensors does not exist" in (run / "report.html").read_text()
    for options in (ReportOptions(neighbors=1), ReportOptions(predict=True)):
        with pytest.raises(ValueError, match="an ensemble has its predictions, and no network"):
            report_run(str(ensemble), options, StopSignal())
    facts = json.loads((ensemble / "ensemble.json").read_text())
    facts["members"][0]["folder"] = str(tmp_path / "nowhere")  # the runs are on another machine
    (ensemble / "ensemble.json").write_text(json.dumps(facts))
    report_run(str(ensemble), ReportOptions(to=str(tmp_path / "page.html")), StopSignal())
    assert "Without pictures: " in (tmp_path / "page.html").read_text()


@pytest.mark.integration
def test_the_page_of_an_ensemble_opens_without_complaint(browser: Any, ensemble: Path) -> None:
    with Shown(browser, ensemble / "report.html", viewport={"width": 360, "height": 700}) as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        assert not found.outside and not found.complaints
        assert found.tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert found.tab.locator("#members tbody th").all_text_contents() == ["runs/<u>a"] * 2
        assert found.tab.locator("nav a").all_text_contents()[0] == "Members"


@pytest.mark.integration
def test_the_value_under_the_cursor(shown: Shown, run: Path) -> None:
    tab = shown.tab
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    plot = tab.locator("[data-chart=loss] .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tab.mouse.move(box["x"] + 20.2 / 40 * box["width"], box["y"] + 40)
    shown = tab.locator("[data-chart=loss] .reading").text_content()
    assert shown.startswith("step 20, epoch 2: ") and f"training {loss[20]:.4g}," in shown
    assert "validation 1.8" in shown  # 2 - 20 / 100
    tab.mouse.move(0, 0)
    assert tab.locator("[data-chart=loss] .reading").text_content() == ""
    tab.locator("[data-chart=accuracy]").focus()
    for key, wanted in (("Home", "step 10, epoch 1: validation 22.00%"), ("ArrowRight", "step 20"), ("End", "step 40")):
        tab.keyboard.press(key)
        assert tab.locator("[data-chart=accuracy] .reading").text_content().startswith(wanted)


def cell_text(p: Predictions, row: int, column: int) -> str:
    total, support = int(confusion(p)[row, column]), int(per_class(p).support[row])
    return f"{total} image{'' if total == 1 else 's'}, {100 * total / support:.1f}% of {support}"


@pytest.mark.integration
def test_the_matrix_zooms_moves_and_lists_images(shown: Shown, run: Path) -> None:
    tab, p = shown.tab, RunRecord(run).val
    assert p is not None
    counts = confusion(p)
    i, j = (int(place) for place in np.argwhere(counts * (1 - np.eye(5, dtype=int)) > 0)[0])
    tab.locator("#matrix").scroll_into_view_if_needed()
    x, y = shown.cell(i, j, 5)
    tab.mouse.move(x, y)
    assert tab.locator(".tip b").text_content() == f"{p.classes[i]} taken for {p.classes[j]}"
    assert tab.locator(".tip span").text_content() == cell_text(p, i, j)
    now, size = shown.matrix(), shown.matrix()["side"] / 5
    content = tab.locator("#matrix").evaluate("(canvas) => canvas.toDataURL()").partition(",")[2]
    pixels = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    red, green, blue = pixels.getpixel((int(now["left"] + 3), int(now["top"] + 3)))
    assert blue > green > red  # right
    red, green, blue = pixels.getpixel((int(now["left"] + j * size + 3), int(now["top"] + i * size + 3)))
    assert red > green > blue  # wrong

    before = shown.matrix()
    tab.mouse.wheel(0, -120)
    tab.wait_for_function("Number(document.getElementById('matrix').dataset.zoom) > 1")
    zoomed = shown.matrix()
    assert (before["zoom"], zoomed["zoom"]) == (1.0, pytest.approx(1.25, abs=1e-3))  # five classes: at most n / 4
    again = shown.cell(i, j, 5)
    assert again == (pytest.approx(x, abs=1.5), pytest.approx(y, abs=1.5))  # what is under the mouse stays there

    tab.mouse.click(x, y)
    assert shown.matrix()["cell"] == f"{i},{j}"
    listed = tab.locator("#cell li bdi").all_text_contents()
    guesses = p.probs.argmax(1)
    assert sorted(listed) == sorted(p.ids[r] for r in wrong(p) if p.labels[r] == i and guesses[r] == j)
    assert len(listed) == counts[i, j] and tab.locator("#cell img").count() == len(listed)
    assert tab.evaluate("[...document.querySelectorAll('#cell img')].every((img) => img.naturalWidth == 60)")

    tab.locator("[data-zoom=whole]").click()
    assert shown.matrix()["zoom"] == 1
    tab.locator("[data-zoom=in]").click()
    middle = shown.cell(2, 2, 5)
    before = shown.matrix()
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + 30, middle[1] - 20, steps=3)
    tab.mouse.up()
    moved, scale = shown.matrix(), before["side"] * before["zoom"] / 5
    assert before["x"] - moved["x"] == pytest.approx(30 / scale, abs=0.02)
    assert moved["y"] - before["y"] == pytest.approx(20 / scale, abs=0.02)
    assert moved["cell"] == f"{i},{j}"  # a drag is no click


@pytest.mark.integration
def test_the_matrix_by_keyboard(shown: Shown, run: Path) -> None:
    tab, p = shown.tab, RunRecord(run).val
    assert p is not None
    tab.locator("#matrix").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    assert shown.matrix()["cell"] == "1,1" and tab.locator("#cell-words").text_content() == (
        f"{p.classes[1]}, recognised: {cell_text(p, 1, 1)}"
    )
    tab.keyboard.press("+")
    assert shown.matrix()["zoom"] == 1.25
    tab.keyboard.press("0")
    assert shown.matrix()["zoom"] == 1
    tab.keyboard.press("Enter")
    assert "recognised" in tab.locator("#cell h3").text_content()


@pytest.mark.integration
def test_the_matrix_by_touch(browser: Any, run: Path) -> None:
    options = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}
    with Shown(browser, run / "report.html", **options) as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        found.tab.locator("#matrix").scroll_into_view_if_needed()
        x, y = found.cell(2, 2, 5)
        wire = found.context.new_cdp_session(found.tab)

        def touch(kind: str, *points: tuple[float, float]) -> None:
            places = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
            wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

        touch("touchStart", (x - 20, y), (x + 20, y))
        for apart in (24, 30, 40):
            touch("touchMove", (x - apart, y), (x + apart, y))
        touch("touchEnd")
        assert found.matrix()["zoom"] == 1.25 and found.matrix().get("cell", "") == ""  # a pinch is no tap
        found.tab.touchscreen.tap(*found.cell(2, 2, 5))
        assert found.matrix()["cell"] == "2,2"
        assert not found.complaints


@pytest.mark.integration
def test_classes_are_sorted_and_searched(shown: Shown, run: Path) -> None:
    tab, p = shown.tab, RunRecord(run).val
    assert p is not None
    figures = per_class(p)

    def column(number: int) -> list[str]:
        return tab.locator(f"#class-table tbody tr > :nth-child({number})").all_text_contents()

    assert column(2) == ["12"] * 5 and sorted(column(3)) == ["2", "3", "4", "4", "4"]  # validation, training
    assert column(4) == [f"{100 * value:.1f}%" for value in sorted(figures.recall)]  # the worst first
    tab.get_by_role("button", name="precision").click()
    assert column(5) == [f"{100 * value:.1f}%" for value in sorted(figures.precision)]
    tab.get_by_role("button", name="precision").click()
    assert column(5) == [f"{100 * value:.1f}%" for value in sorted(figures.precision, reverse=True)]
    assert tab.locator("th[aria-sort]").all_text_contents() == ["precision"]
    tab.locator("#search").fill("QUOTED")
    assert tab.locator("#class-table tbody tr:visible th").all_text_contents() == [folder_name(EVIL[1])]
    assert tab.locator("#found").text_content() == "1 class"
    tab.locator("#search").fill("")
    assert tab.locator("#class-table tbody tr:visible").count() == 5
    tab.get_by_role("button", name="in training").click()
    assert column(3) == ["2", "3", "4", "4", "4"]
    assert column(1)[:2] == [folder_name(EVIL[1]), folder_name(EVIL[0])]


def test_a_run_of_an_early_version_has_no_numbers_of_training_images(run: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    shutil.copytree(run, early)
    assert "in training" in written(early)
    facts = json.loads((early / "data.json").read_text())
    assert sum(facts["train"].pop("per_class")) == facts["train"]["images"]
    (early / "data.json").write_text(json.dumps(facts))
    assert "in training" not in written(early)


@pytest.mark.integration
def test_summary_and_tables_need_no_script(browser: Any, run: Path) -> None:
    p = RunRecord(run).val
    assert p is not None
    with Shown(browser, run / "report.html", java_script_enabled=False) as found:
        text = found.tab.locator("body").inner_text()
        right = float((p.probs.argmax(1) == p.labels).mean())
        assert f"{100 * right:.1f}%" in text and "on 60 images" in text
        assert found.tab.locator("#class-table tbody tr:visible").count() == 5
        assert found.tab.locator("#matrix").is_hidden() and "needs JavaScript" in text
        assert found.tab.locator("[data-chart=loss] path.line").first.is_visible()
        assert found.tab.locator(".card img:visible").count() == min(24, len(wrong(p)))


class Noise:
    """Photos that compress badly, by the name of their row."""

    def __init__(self, ids: list[str]) -> None:
        self.ids, self.labels = ids, np.zeros(len(ids))
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(buffer, "JPEG")
        self.content = buffer.getvalue()

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, row: int) -> str:
        return self.ids[row]

    def read(self, rows: Any) -> list[bytes]:
        return [self.content for _ in rows]

    def order(self, seed: int, balanced: bool) -> Any:
        raise AssertionError


def write_thousand(out: Path, images: int) -> int:
    classes = tuple(f"a class whose name is of usual length {i}" for i in range(1000))
    ids = [f"val/class-{i % 1000:04d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(images)]
    begin(out)
    record(out, 40)
    val = predictions(ids, np.arange(images) % 1000, classes, 3)
    record_of = RunRecord(out, {"val": val})
    pictures = Pictures(thumbs=thumbnails(Noise(ids), val))
    assert len(pictures.thumbs) == 200 and len(wrong(val)) > images / 4
    size = write_page(record_of, pictures, out / "report.html")["bytes"]
    assert size == (out / "report.html").stat().st_size
    return int(size)


def open_thousand(browser: Any, out: Path) -> tuple[float, float]:
    """Seconds until the page is drawn and works, by the clock, and those of them that its thread was busy."""
    with Shown(browser, out / "report.html") as found:
        found.tab.wait_for_selector("[data-ready]", state="attached")
        drawn = found.tab.evaluate("new Promise((ok) => requestAnimationFrame(() => ok(performance.now() / 1000)))")
        wire = found.context.new_cdp_session(found.tab)
        wire.send("Performance.enable", {"timeDomain": "threadTicks"})
        found.tab.reload()
        found.tab.wait_for_selector("[data-ready]", state="attached")
        found.tab.evaluate("new Promise(requestAnimationFrame)")
        busy = {row["name"]: row["value"] for row in wire.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
        assert not found.outside and not found.complaints
        assert found.tab.locator("#class-table tbody tr").count() == 1000
        found.tab.locator("#matrix").scroll_into_view_if_needed()
        found.tab.mouse.move(*found.cell(500, 500, 1000))
        for _ in range(12):
            found.tab.mouse.wheel(0, -200)
        found.tab.wait_for_function("Number(document.getElementById('matrix').dataset.zoom) > 200")
        assert "500, recognised" in found.tab.locator(".tip b").text_content()
        return float(drawn), float(busy)


@pytest.mark.soak
def test_a_thousand_classes(browser: Any, tmp_path: Path) -> None:
    size = write_thousand(tmp_path, 2000)
    drawn, busy = open_thousand(browser, tmp_path)
    print(f"{size / 1e6:.1f} MB, drawn after {drawn:.2f} s, {busy:.2f} s of them busy")
    assert size < 15e6


@pytest.mark.soak
def test_a_thousand_classes_and_thirty_thousand_images_open_in_three_seconds(browser: Any, tmp_path: Path) -> None:
    """Of the page's own time: others on the machine must not decide."""
    size = write_thousand(tmp_path, 30_000)
    drawn, busy = open_thousand(browser, tmp_path)
    print(f"{size / 1e6:.1f} MB, drawn after {drawn:.2f} s, {busy:.2f} s of them busy")
    assert size < 15e6 and busy < 3


@pytest.mark.integration
def test_a_run_that_goes_on_has_a_report(browser: Any, tmp_path: Path) -> None:
    begin(tmp_path / "new")
    assert "has not ended" in written(tmp_path / "new")
    record(tmp_path / "new", 40)
    text = written(tmp_path / "new")
    assert "state after 40 steps" in text and "best validation accuracy so far" in text and "28.00%" in text
    assert "Confusion" not in text
    with Shown(browser, tmp_path / "new" / "report.html") as found:
        found.tab.wait_for_selector("[data-chart=loss] path.line", state="attached")
        assert not found.complaints
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        RunRecord(tmp_path).run  # noqa: B018  # a property that raises


def written(out: Path) -> str:
    write_page(RunRecord(out), Pictures(), out / "report.html")
    return (out / "report.html").read_text()


def test_predictions_that_a_run_has_not_stored_can_be_made(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("predictions", "exit.json"))
    config = RunRecord(out).run
    splits = load(config.data, 0)
    (out / "best").mkdir()
    weights = {name: value.contiguous() for name, value in build_model(config.model, 5, 7).state_dict().items()}
    save_file(weights, out / "best" / "model.safetensors", best_header(config, splits))
    before = {path for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"--neighbors needs predictions, .*: add --predict True"):
        report_run(str(out), ReportOptions(neighbors=1, device="cpu", workers=0), StopSignal())
    document = report_run(str(out), ReportOptions(neighbors=1, predict=True, device="cpu", workers=0), StopSignal())
    figures = evaluate_images([str(out)], "", EvaluateOptions(device="cpu", workers=0), StopSignal())
    assert document is not None and figures is not None
    assert document["summary"]["validation accuracy"].startswith(f"{100 * figures['accuracy']:.2f}% ")
    assert (
        document["summary"]["loss"] == f"{figures['loss']:.4f}" and {p for p in out.rglob("*") if p.is_file()} == before
    )
    right = sum(figure["recall"] * figure["images"] for figure in figures["classes"].values())
    assert right == pytest.approx(60 * figures["accuracy"])
    text = (out / "report.html").read_text()
    assert "Averaged over identity, hflip" in text and text.count("nearest training images of") == 2 * min(
        24, round(60 * (1 - figures["accuracy"]))
    )


def test_no_secret_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-value")
    begin(tmp_path, track={"project": "s3cr3t-value"}, data={"path": "https://me:pass@host/x"})
    text = written(tmp_path)
    assert "s3cr3t-value" not in text and "[SOME_API_KEY]" in text
    assert "pass@" not in text and "https://***@host" in text
    begin(tmp_path, data={"path": "https://t0ken@host/x"})
    note = Pictures(note="no https://t0ken@host/x")
    write_page(RunRecord(tmp_path), note, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "t0ken" not in text and text.count("https://***@host/x") >= 2


def test_what_the_page_says_of_test_time_views(run: Path) -> None:
    found = document(RunRecord(run), Pictures())["views"]
    val, views = RunRecord(run).val, RunRecord(run).val_tta
    assert val is not None and views is not None
    pairs = [
        (a.argmax() == label, b.argmax() == label)
        for a, b, label in zip(val.probs, views.probs, val.labels, strict=True)
    ]
    assert found["gained"] == pairs.count((False, True)) > 0 and found["lost"] == pairs.count((True, False)) > 0
    assert found["averaged"] - found["plain"] == pytest.approx((found["gained"] - found["lost"]) / 60)
    assert found["names"] == "identity, hflip"


def test_images_without_a_label_do_not_count(run: Path) -> None:
    stored = RunRecord(run).val
    assert stored is not None
    val = replace(stored, labels=np.append(stored.labels[:-10], np.full(10, -1)))
    low, high = wilson(accuracy(val), 50)
    found = document(RunRecord(run, {"val": val}), Pictures())["headline"]
    assert found == {"accuracy": accuracy(val), "low": low, "high": high, "images": 50}


def test_long_curves_are_means_of_equal_pieces() -> None:
    x, y = thin(list(range(POINTS * 3)), [float(i % 3) for i in range(POINTS * 3)])
    assert x == [3.0 * i + 1 for i in range(POINTS)] and y == [1.0] * POINTS
    assert thin([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_a_thumbnail_is_small_upright_and_says_nothing_of_the_camera() -> None:
    photo = Image.new("RGB", (1600, 800), "red")
    photo.paste("blue", (0, 0, 800, 800))  # left half
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Secret Camera Works"  # to be turned by 90 degrees clockwise: blue is then above
    data = io.BytesIO()
    photo.save(data, "JPEG", exif=exif, comment=b"a secret comment")
    address = thumbnail(Decoder(), data.getvalue())
    content = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    small = Image.open(io.BytesIO(content))
    assert small.size == (SIDE // 2, SIDE) and not small.getexif() and b"ecret" not in content
    (upper, lower) = small.getpixel((32, 20)), small.getpixel((32, 108))
    assert upper[2] > 200 > 60 > upper[0] and lower[0] > 200 > 60 > lower[2]
    assert thumbnail(Decoder(), b"no image") == ""


def test_the_nearest_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the network with its output layer taken off, and cosines in numpy."""
    run = change(recipes.get("digits"), data={"limit": 80, "workers": 0}, model={"head": "16 relu"})
    splits = load(run.data, run.seed)
    model = build_model(run.model, 10, 0)
    train, val = images_of(splits.train), images_of(splits.val)
    p = predictions(list(splits.val["id"]), np.array(splits.val["label"]), splits.classes, 4)
    prepare = preprocess(((0.5,) * 3, (0.5,) * 3), 0, False, torch.device("cpu"))
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    predictor = Predictor(model, splits.classes, run, world, prepare)
    found, note = neighbors.nearest_images(predictor, train, val, p, 3)
    assert list(found) == wrong(p)[:24].tolist() and "all" in note

    model.fc = model.fc[:-1]
    whole = {}
    for name, images in (("train", train), ("val", val)):
        plain = ViewDataset(images, view_ops("identity", run.data), run.data.size, 0, "identity")
        with torch.no_grad():
            whole[name] = model(load_batch(plain, range(len(images))).pixels / 255 * 2 - 1).numpy()
    row = next(iter(found))
    own = whole["val"][row]
    cosine = whole["train"] @ own / np.linalg.norm(whole["train"], axis=1) / np.linalg.norm(own)
    for got, label in zip(found[row], (p.probs[row].argmax(), p.labels[row]), strict=True):
        of_class = np.flatnonzero(train.labels == label)
        best = of_class[np.argsort(-cosine[of_class])][:3]
        assert [other.similarity for other in got] == pytest.approx(cosine[best], abs=1e-4)
        assert [other.id for other in got] == [train.name(int(i)) for i in best]
        assert all(other.picture.startswith("data:image/jpeg;base64,") for other in got)

    monkeypatch.setattr(neighbors, "COMPARED", 12)
    rows, note = neighbors.sample(train.labels, [1, 4, 7], 5)
    assert len(rows) == 12 and np.bincount(train.labels[rows], minlength=8)[[1, 4, 7]].tolist() == [4, 4, 4]
    assert (
        "12 (at most 4 a class, drawn by seed 5)" in note
        and f"of the {(np.isin(train.labels, [1, 4, 7])).sum()}" in note
    )


def test_the_package_has_its_page() -> None:
    """Every file below cls/ that is no Python is named in pyproject.toml, or a wheel would lack it."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    there = {
        (".".join(path.relative_to(ROOT).parent.parts), path.name)
        for path in ROOT.glob("cls/**/*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert there == {(package, name) for package, names in named.items() for name in names} and len(there) == 5
