"""``cls tune``: what a search costs, what it may conclude from one round, and real searches on the digits."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cls import recipes
from cls.commands.main import parse_command
from cls.commands.options import TuneOptions
from cls.commands.parsing import parse_run
from cls.commands.tune.members import candidate, command, head_run, member, starts, with_part_held_out
from cls.commands.tune.picture import figure
from cls.commands.tune.race import best_between, guessing, image_losses, proposal, race, trend
from cls.commands.tune.rounds import STARTS, Plan, neighbors, parts_of
from cls.commands.tune.run import _keep, _planned, _reject_drift, tune
from cls.commands.tune.search import Search, _reject_failed, _reject_other_images, two_digits
from cls.config import Run, change, to_yaml
from cls.data.sources import load
from cls.evaluation.predictions import Predictions
from cls.runtime.rng import generator
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import keep, look
from cls.tracking.run_status import state_of
from cls.training.steps import Steps
from cls.validate import check
from tests.harness import ROOT, environment
from tests.harness.runs import Runs


def plan_of(images: int, epochs: float, batch: int = 64, fits_head: bool = True, budget: float = 0.0) -> Plan:
    held = -(-images // parts_of(images))
    return Plan(images, images - held, held, batch, epochs, fits_head, budget)


# --- one round ---


def simulated(k: int, n: int, rng: np.random.Generator, worse: float = 0.0) -> np.ndarray:
    """Log losses (k n) with the long tail of real ones: most images are easy for all, a few are hard for all."""
    hard = rng.gamma(0.3, 2.0, size=n)
    own = rng.gamma(2.0, 0.5, size=(k, n))
    losses: np.ndarray = hard * own
    losses[-1] += worse
    return losses


@pytest.mark.parametrize(("k", "n"), [(5, 409), (7, 100)])
def test_equal_rates_are_seldom_called_worse(k: int, n: int) -> None:
    rng, plan = generator(0, "races", k, n), plan_of(3068, 4)
    wrong = sum(any(race(simulated(k, n, rng), plan.comparisons).worse) for _ in range(1000))
    assert wrong <= 50


def test_control_a_worse_rate_is_called_so() -> None:
    rng = generator(0, "race")
    found = [race(simulated(5, 409, rng, worse=0.3), 21) for _ in range(100)]
    assert sum(each.worse[-1] for each in found) >= 95 and all(each.leader != 4 for each in found)


def test_the_differences_are_paired() -> None:
    """Losses that vary far more between images than between rates: only the differences matter."""
    images = generator(0, "paired").gamma(1.0, 5.0, size=400)
    noise = generator(1, "paired").normal(scale=0.01, size=(2, 400))
    found = race(np.stack([images, images + 0.05]) + noise, 1)
    assert found.leader == 0 and found.worse == [False, True]
    assert found.against[1].mean == pytest.approx(0.05, abs=0.002)
    assert found.against[0] == (0.0, 0.0, 0.0)


def test_a_rate_that_diverged_is_worse() -> None:
    found = race(np.stack([np.ones(9), np.full(9, np.inf)]), 1)
    assert found.worse == [False, True] and found.losses[1] == np.inf


def predictions(probs: list[list[float]], labels: list[int], errors: list[str] | None = None) -> Predictions:
    n = len(labels)
    return Predictions(
        ids=[str(i) for i in range(n)], labels=np.array(labels), probs=np.array(probs), errors=errors or [""] * n,
        classes=("a", "b"), loss=0.0,
    )  # fmt: skip


def test_the_loss_of_an_image_is_minus_the_log_of_its_class() -> None:
    p = predictions([[0.25, 0.75], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5]], [0, 1, 0, -1], ["", "", "broken", ""])
    assert image_losses(p, "ce") == pytest.approx([np.log(4), -np.log(1e-7)])  # a file that nobody can read is left out
    overflow = predictions([[np.nan, np.nan], [0.5, 0.5]], [0, 1])
    assert image_losses(overflow, "ce") == pytest.approx([-np.log(1e-7), np.log(2)])  # the network's own fault
    assert guessing(p, "ce") == pytest.approx(np.log(2))
    one = predictions([[0.5, 0.5]] * 4, [0, 0, 0, 1])
    assert guessing(one, "ce") == pytest.approx(0.75 * np.log(4 / 3) + 0.25 * np.log(4))


def test_the_squared_error_is_that_of_the_logits() -> None:
    logits = generator(0, "mse").normal(size=(50, 2))
    logits += 0.5 - logits.mean(axis=1, keepdims=True)  # their mean is that of the targets
    labels = [i % 2 for i in range(50)]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = image_losses(predictions(probs.tolist(), labels), "mse")
    assert found == pytest.approx(((logits - np.eye(2)[labels]) ** 2).mean(axis=1))
    constant = np.array([0.75, 0.25])
    error = np.mean([((constant - np.eye(2)[label]) ** 2).mean() for label in (0, 0, 0, 1)])
    assert guessing(predictions([[0.5, 0.5]] * 4, [0, 0, 0, 1]), "mse") == pytest.approx(error)


def lengths(optima: list[float], rng: np.random.Generator) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Losses of 1,037 images at twice the steps for each optimum, with noise between images and between trainings."""
    hard, found = rng.gamma(0.5, 1.0, size=1037), []
    for number, optimum in enumerate(optima):
        rates = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2])[1 if number else 0 : 4 if number else 5]
        means = 0.5 + 0.05 * np.log(rates / optimum) ** 2
        noise = rng.normal(scale=0.3, size=(len(rates), 1037))
        found.append((27 << number, rates, hard + means[:, None] + noise))
    return found


def test_where_the_best_rate_is_the_same_at_all_lengths_it_seldom_follows_them() -> None:
    rng = generator(0, "trends")
    found = [trend(lengths([8e-4, 8e-4], rng), 2.3, seed) for seed in range(10)]
    assert sum(each.slope != 0 for each in found) <= 2 and all(each.low <= each.high for each in found)


def test_where_the_best_rate_falls_with_the_steps_it_follows_within_bounds() -> None:
    found = trend(lengths([1.5e-3, 6e-4], generator(0, "falls")), 2.3, 0)
    assert found.slope == -0.5 and found.low < found.high < 0
    assert proposal(6e-4, 54, 54 * 4, -0.5) == pytest.approx(3e-4)
    assert proposal(6e-4, 54, 3886, -0.5) == pytest.approx(2e-4)  # no farther than a third
    rises = trend(lengths([6e-4, 1.5e-3], generator(0, "rises")), 2.3, 0)
    assert rises.slope == 0 and rises.low > 0


def test_the_best_rate_is_the_lowest_point_of_a_parabola() -> None:
    rates = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    losses = 0.5 + 0.1 * np.log(rates / 7e-4) ** 2
    assert best_between(rates, losses, 2.3) == pytest.approx(7e-4)
    assert best_between(rates[:3], losses[:3], 2.3) == 1e-3  # an edge
    diverged = np.array([1.0, 0.9, 0.8, np.inf, np.inf])
    assert 3e-4 < best_between(rates, diverged, 1.0) < 1e-3
    assert best_between(rates[:3], np.array([0.5, 0.5, 0.5]), 2.3) == 1e-4


@pytest.mark.parametrize(
    ("rates", "means", "best"),
    [
        ([1e-4, 3e-4, 1e-3], [5.0, 4.0, 5.0], 3e-4),
        ([3e-4, 1e-3, 3e-3], [5.0, 4.0, 5.0], 1e-3),
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [2.9, 2.7, 2.5, 2.6, 2.9], 1e-3),
        ([3e-4, 1e-3, 3e-3], [0.1 + 0.2, 0.3, 0.3], 1e-3),
    ],
)
def test_where_no_parabola_shows_a_lowest_point_the_best_rate_is_that_of_the_lowest_loss(
    rates: list[float], means: list[float], best: float
) -> None:
    """Above the loss of guessing, as with weighted classes, three clipped losses are equal up to rounding."""
    assert best_between(np.array(rates), np.array(means), 2.302585) == best


def test_neighbors_are_half_a_decade_apart() -> None:
    assert neighbors(3e-4) == (1e-4, 1e-3) and neighbors(1e-3) == (3e-4, 3e-3) and neighbors(1.0) == (0.3, 3.0)
    for rates in STARTS.values():
        assert all(neighbors(neighbors(low)[1])[1] == high for low, high in pairwise(rates))


# --- what it costs ---


@pytest.mark.parametrize(
    ("images", "epochs", "most"), [(3068, 4, 0.6), (3068, 12, 0.25), (20724, 12, 0.12), (20724, 100, 0.12)]
)
def test_a_search_costs_a_share_of_the_run(images: int, epochs: float, most: float) -> None:
    plan = plan_of(images, epochs)
    assert plan.planned <= most * plan.whole and plan.planned <= plan.allowed
    assert plan.planned >= 0.75 * plan.allowed  # and uses what it may
    assert plan.held >= 500 and plan.trained + plan.held == images


def test_a_long_run_has_rounds_of_fewer_rates_at_twice_the_steps() -> None:
    rounds = plan_of(20724, 100).rounds
    assert [k for k, _ in rounds] == [5, 3, 3]
    assert [steps for _, steps in rounds] == [rounds[0].steps << i for i in range(3)]


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.3, 1.0])
def test_a_given_budget_is_kept_where_it_can_be(budget: float) -> None:
    plan = plan_of(20724, 12, budget=budget)
    assert plan.planned <= plan.allowed == budget * plan.whole
    tiny = plan_of(20724, 12, budget=0.001)
    assert tiny.rounds == ((5, 8),) and tiny.planned > tiny.allowed  # and says so


@pytest.mark.parametrize("steps", [1, 8, 14, 40, 41, 100])
def test_a_candidate_has_exactly_its_steps(steps: int) -> None:
    plan = plan_of(3068, 4)
    run = candidate(recipes.get("best-baseline"), plan, Path("runs"), 1e-3, steps)
    assert Steps(plan.trained, run.train).whole == steps


# --- its runs ---


def test_every_recipe_can_be_tuned() -> None:
    for name in recipes.RECIPES:
        run = change(recipes.get(name), data={"path": "photos"})
        plan = plan_of(20724, run.train.epochs, run.train.batch, run.model.weights != "none")
        run = with_part_held_out(run, 20)
        short = candidate(run, plan, Path("t"), 3e-4, 32)
        for each in (head_run(run, plan, Path("t")), short) if plan.fits_head else (short,):
            check(each)
            assert each.data.hold_out == "+1/20" and not each.augment.tta and each.seed == run.seed
        assert short.optim.lr == 3e-4 and short.optim.schedule in ("fixed", "warmup-cosine", "one-cycle")
        assert (
            (short.model.weights == "t/head/best/model.safetensors") == plan.fits_head == (run.model.weights != "none")
        )


@pytest.mark.parametrize("name", recipes.systems()[1:])
def test_the_command_line_of_a_run_is_the_run(name: str) -> None:
    run = change(recipes.get(name), data={"path": "photos"})
    plan = plan_of(20724, run.train.epochs, run.train.batch)
    head = head_run(run, plan, Path("t"))
    assert head.optim.head_epochs == head.train.epochs == plan.head_epochs
    for each in (head, candidate(run, plan, Path("t"), 3e-4, 32)):
        assert parse_run(command(each)) == each


def test_a_short_run_has_the_shape_of_the_whole_one() -> None:
    run = change(recipes.get("best-baseline"), optim={"schedule": "warmup-cosine", "warmup": 1.0}, train={"epochs": 20})
    plan = plan_of(3068, 20)
    short = candidate(run, plan, Path("t"), 1e-3, 40)
    assert short.optim.warmup / short.train.epochs == pytest.approx(1 / 20, rel=1e-3)
    assert with_part_held_out(change(run, data={"hold_out": "1/3"}), 6).data.hold_out == "1/3+1/6"


# --- real searches ---

SEARCH = [
    "tune", "digits", "--data.limit", "150", "--data.workers", "0", "--train.batch", "16", "--train.micro-batch", "8",
    "--train.epochs", "10", "--model.backbone", "timm/test_resnet", "--train.eval-batch", "16", "--budget", "0.9",
]  # fmt: skip


class Searches:
    """The command in a process of its own; its runs are forked by the server of ``runs``."""

    def __init__(self, runs: Runs, weights: Path) -> None:
        self.env, self.weights = environment(HARNESS_SERVER=runs.address, PYTHONPATH=str(ROOT)), weights

    def start(self, out: Path, *extra: str, **env: str) -> subprocess.Popen[str]:
        launch = shlex.join([sys.executable, str(ROOT / "tests" / "harness" / "launcher.py")])
        words = [*SEARCH, "--model.weights", str(self.weights), "--out", str(out), "--launch", launch, *extra]
        code = [sys.executable, "-c", "from cls.commands.main import main; main()", *words, "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(code, env=self.env | env, stdout=pipe, stderr=pipe, text=True, cwd=out.parent)

    def run(self, out: Path, *extra: str, **env: str) -> dict[str, Any]:
        process = self.start(out, *extra, **env)
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        found: dict[str, Any] = json.loads(output)
        return found


@pytest.fixture(scope="module")
def searches(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    words = ["digits", *SEARCH[2:-2], "--model.weights", "none", "--train.epochs", "4", "--track.wandb", "disabled"]
    ended = runs.run(out, words)
    assert ended.codes == [0], ended.output
    weights = out.with_name("pretrained.safetensors")  # as from elsewhere: a run's own have seen what is held out here
    save_file(load_file(out / "best" / "model.safetensors"), weights)
    return Searches(runs, weights)


def killed(searches: Searches, out: Path, **env: str) -> None:
    """A search whose process is killed while a candidate runs, which is left to end."""
    process = searches.start(out, **env)
    until = time.monotonic() + 200
    while not (locks := list(out.glob("steps*/lock"))):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while state_of(locks[0].parent) == "running":
        time.sleep(0.05)


@pytest.mark.integration
def test_a_search_begins_with_the_head(searches: Searches, runs: Runs, tmp_path: Path) -> None:
    """The first two batches of a search, as SLURM would run them."""
    lines = tmp_path / "lines.txt"
    first = searches.run(tmp_path / "search", "--slurm", str(lines))
    assert f"sbatch --array=1-1 slurm/sweep.sh {tmp_path / 'lines-1.txt'}" in first["waiting"]
    words = shlex.split((tmp_path / "lines-1.txt").read_text())
    ended = runs.run(tmp_path / "search" / "head", words)
    assert ended.codes == [0], ended.output
    before, after = load_file(searches.weights), load_file(ended.out / "best" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.startswith("fc.")}
    second = searches.run(tmp_path / "search", "--slurm", str(lines))
    assert f"sbatch --array=1-3 slurm/sweep.sh {tmp_path / 'lines-2.txt'}" in second["waiting"]
    assert [parse_run(shlex.split(line)).optim.lr for line in (tmp_path / "lines-2.txt").read_text().splitlines()] == [
        3e-5, 3e-4, 3e-3,
    ]  # fmt: skip


@pytest.mark.soak
def test_a_killed_search_continues_and_its_figures_are_those_of_its_runs(searches: Searches, tmp_path: Path) -> None:
    killed(searches, tmp_path / "search")
    found = searches.run(tmp_path / "search")
    assert json.loads((tmp_path / "search" / "tune.json").read_text()) == found
    assert (tmp_path / "search" / "tune.png").stat().st_size > 10_000
    assert parse_run(shlex.split(found["command"])[3:]).optim.lr == found["rate"]
    assert found["spent_images"] <= 1.2 * found["planned_images"]
    (only,) = found["rounds"]
    rates, losses = ([row[key] for row in only["candidates"]] for key in ("rate", "loss"))
    assert 5 <= len(rates) <= 7 and rates == sorted(rates)
    for rate, loss in zip(rates, losses, strict=True):
        out = tmp_path / "search" / f"steps{only['steps']}-lr{rate:g}"
        table = pq.read_table(out / "predictions" / "val.parquet").to_pydict()
        own = [probs[int(label)] for probs, label in zip(table["probs"], table["label"], strict=True)]
        assert loss == pytest.approx(-np.log(np.maximum(own, 1e-7)).mean()) and len(own) == found["held"]
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert max(row["step"] for row in rows) == only["steps"] and not (out / "prediction.csv").exists()
    best = rates[int(np.argmin(losses))]
    assert neighbors(best)[0] <= found["rate"] <= neighbors(best)[1]


@pytest.mark.soak
def test_a_search_is_the_same_after_a_kill_on_two_processes_and_through_slurm(
    searches: Searches, runs: Runs, tmp_path: Path
) -> None:
    whole = searches.run(tmp_path / "whole", "--jobs", "2")
    killed(searches, tmp_path / "again", HARNESS_WORLD="2")
    again = searches.run(tmp_path / "again", HARNESS_WORLD="2")
    assert {**again, "command": ""} == {**whole, "command": ""}
    (start,) = (tmp_path / "again" / "head").glob("events.jsonl")
    assert json.loads(start.read_text().splitlines()[0])["processes"] == 2

    other = searches.start(tmp_path / "whole", "--train.epochs", "9")
    assert "holds a search with other settings; use another --out" in other.communicate(timeout=100)[1]

    out, lines = tmp_path / "array", tmp_path / "lines.txt"
    for number in range(1, 5):
        found = searches.run(out, "--slurm", str(lines))
        if "rate" in found:
            break
        file = tmp_path / f"lines-{number}.txt"
        assert f"sbatch --array=1-{len(file.read_text().splitlines())} slurm/sweep.sh {file}" in found["waiting"]
        early = searches.run(out, "--slurm", str(lines))["waiting"]  # asked too early, it only says so again
        assert "submit the next runs, unless they are in the queue" in early and early.endswith(
            found["waiting"].partition("\n")[2]
        )
        for line in file.read_text().splitlines():
            words = shlex.split(line)
            ended = runs.run(Path(words[words.index("--out") + 1]), words)
            assert ended.codes == [0], ended.output
    assert {**found, "command": ""} == {**whole, "command": ""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget -1", "--budget is -1"),
        ("--budget nan", "--budget is nan"),
        ("--budget inf", "--budget is inf"),
        ("--data.limit 4 --train.batch 2 --train.micro-batch 2", "holds out one of 5 parts .* found 4: train with sev"),
        ("--jobs 0", "--jobs is 0"),
        ("--jobs 2 --slurm lines.txt", "--jobs is for runs on this machine"),
        ("--data.path photos --data.streaming True", "data.streaming: a search holds out"),
        ("--train.max-steps 9", "train.max_steps is 9: a search is for the length"),
        ("--model.weights some.safetensors --optim.head-epochs 4", "optim.head_epochs is all of train.epochs"),
        ("--train.batch 1200 --train.micro-batch 100", "train.batch is 1200, but the short runs"),
        ("--optim.min-lr 0.004 --optim.lr 0.01", "optim.min_lr is 0.004, above all candidates"),
    ],
)
def test_what_cannot_be_searched_is_rejected_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        parse_command("tune", ["digits", "--data.workers", "0", *words.split()]).do(StopSignal())
    assert not list(tmp_path.iterdir())


def test_a_rate_that_would_rise_to_the_lowest_one_is_left_out() -> None:
    run = change(Run(), optim={"min_lr": 1e-4, "lr_batch": 64, "scale_lr": "linear"}, train={"batch": 16})
    assert starts(run) == [3e-3]  # 3e-4 is 7.5e-5 at this batch
    with pytest.raises(ValueError, match="above all candidates"):
        starts(change(run, optim={"min_lr": 1.0}))


def test_a_search_cannot_be_mixed_with_another(tmp_path: Path) -> None:
    plan, run = plan_of(3068, 4), Run()
    _keep(tmp_path, run, plan)
    _keep(tmp_path, change(run, train={"batch": 32}), plan)  # nothing has been trained
    (tmp_path / "head" / "best").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"other settings; use another --out:\s+train\.batch: 32 -> 64"):
        _keep(tmp_path, run, plan)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="is a run directory"):
        _keep(tmp_path, run, plan)


def test_the_picture_shows_each_candidate_or_a_triangle() -> None:
    rows = [(1e-4, 0.85), (3e-4, 0.7), (1e-3, 0.75), (3e-3, 5.6), (1e-2, None)]
    candidates = [{"rate": rate, "loss": loss, "low": -0.1, "high": 0.1} for rate, loss in rows]
    rounds = [{"steps": 14, "candidates": candidates}, {"steps": 28, "candidates": candidates[1:3]}]
    document = {"recipe": "best", "rate": 4e-4, "steps": 192, "held": 512, "rounds": rounds}
    (axes,) = figure(document).axes
    drawn = [[tuple(point) for point in line.get_xydata()] for line in axes.lines if line.get_marker() in ("o", "^")]
    assert drawn[0] == [(1e-4, 0.85), (3e-4, 0.7), (1e-3, 0.75)]
    assert [rate for rate, _ in drawn[1]] == [3e-3, 1e-2] and drawn[2] == [(3e-4, 0.7), (1e-3, 0.75)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.0003", "0.001", "0.003", "0.01"]
    assert "0.0004 for 192 steps" in axes.get_title(loc="left")


def test_a_round_far_above_the_others_is_drawn_as_triangles() -> None:
    far = [{"rate": rate, "loss": 9.0, "low": -0.1, "high": 0.1} for rate in (1e-4, 3e-4)]
    near = [{"rate": 10.0**-k, "loss": 0.7 + 0.01 * k, "low": -0.1, "high": 0.1} for k in range(1, 6)]
    rounds = [{"steps": 14, "candidates": far}, {"steps": 28, "candidates": near}, {"steps": 56, "candidates": near}]
    (axes,) = figure({"recipe": "best", "rate": 4e-4, "steps": 192, "held": 512, "rounds": rounds}).axes
    triangles = [line for line in axes.lines if line.get_marker() == "^"]
    assert [point[0] for point in triangles[0].get_xydata()] == [1e-4, 3e-4]


class Simulated(Search):
    """Candidates whose mean loss is a parabola around ``lowest``, without training."""

    def __init__(self, run: Run, plan: Plan, folder: Path, lowest: float, launch: str = "python train.py") -> None:
        super().__init__(run, run, plan, folder, TuneOptions(launch=launch), StopSignal())
        self.lowest, self.guessing = lowest, 2.3
        self.images, self.draws = np.random.default_rng(0).normal(0, 0.3, plan.held), np.random.default_rng(0)

    def _perform(self, runs: Sequence[Run]) -> None:
        """Nothing: the head."""

    def _try(self, steps: int, rates: Sequence[float]) -> None:
        for rate in set(rates) - {rate for done, rate in self.losses if done == steps}:
            own = np.random.default_rng(round(1e9 * rate)).normal(0, 0.05, self.plan.held)
            self.losses[steps, rate] = 1 + 0.02 * np.log10(rate / self.lowest) ** 2 + self.images + own
            self.spent += self.plan.cost(steps)


@pytest.mark.parametrize("lowest", [1e-12, 3e-4, 1e4])
@pytest.mark.parametrize(("images", "epochs"), [(3068, 4), (20724, 100)])
def test_a_best_rate_at_the_edge_costs_no_more_and_counts_its_comparisons(
    images: int, epochs: float, lowest: float, tmp_path: Path
) -> None:
    run = change(Run(), train={"epochs": epochs, "batch": 64, "micro_batch": 16}, optim={"name": "adamw"})
    search = Simulated(run, plan := plan_of(images, epochs), tmp_path, lowest)
    document = search.result()
    assert document["spent_images"] <= plan.allowed + 1
    sizes = [len(each["candidates"]) for each in document["rounds"]]
    pairs = max(plan.comparisons, sum(k * (k - 1) // 2 for k in sizes))
    for each in document["rounds"]:
        rates = [row["rate"] for row in each["candidates"]]
        expected = race(np.stack([search.losses[each["steps"], rate] for rate in rates]), pairs)
        assert [row["low"] for row in each["candidates"]] == [interval.low for interval in expected.against]


def test_the_proposed_rate_is_not_below_the_lowest_one() -> None:
    assert two_digits(2.94e-5, 2.94e-5) == 3e-5 and two_digits(1e-6, 9.96e-5) == 1e-4
    assert two_digits(1.234e-3, 0.0) == 1.2e-3 and two_digits(1e-5, 2e-5) == 2e-5


def test_a_launcher_in_the_home_directory_can_be_pasted(tmp_path: Path) -> None:
    run = change(Run(), train={"epochs": 4.0, "batch": 64, "micro_batch": 16})
    search = Simulated(run, plan_of(3068, 4), tmp_path, 3e-4, "accelerate launch ~/cls/train.py")
    assert shlex.split(search.result()["command"])[2] == os.path.expanduser("~/cls/train.py")


def test_a_run_that_fails_before_it_has_a_directory_is_a_failure(tmp_path: Path) -> None:
    """Not one that runs elsewhere: the same command would wait for ever."""
    runs = [change(Run(), out=str(tmp_path / name)) for name in ("a", "b")]
    reason = "user_error: model.weights: there is no such file"
    with pytest.raises(ValueError, match=rf"1 runs failed; the same command tries them again:\n  .*/a: {reason}$"):
        _reject_failed([member(run) for run in runs], {str(tmp_path / "a"): reason})
    _reject_failed([member(run) for run in runs], {})


def stored(run: Run, outcome: str = "") -> Run:
    """A run directory with a configuration and an end, for ``member``."""
    out = Path(run.out)
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(to_yaml(run))
    if outcome:
        (out / "exit.json").write_text(json.dumps({"outcome": outcome, "reason": "it was so"}))
    return run


def test_a_killed_run_is_a_failure_and_not_one_that_runs_elsewhere(tmp_path: Path) -> None:
    run = stored(change(Run(), out=str(tmp_path / "a")))
    assert member(run).state == "killed"
    with pytest.raises(ValueError, match=r"1 runs failed; .*\n  .*/a: killed: SIGKILL$"):
        _reject_failed([member(run)], {str(tmp_path / "a"): "killed: SIGKILL"})
    _reject_failed([member(run)], {})  # of an earlier call: it is begun again


@pytest.mark.parametrize("outcome", ["done", "non_finite", "stopped", ""])
def test_a_run_of_other_settings_is_no_member_of_the_search(tmp_path: Path, outcome: str) -> None:
    run = stored(change(Run(), out=str(tmp_path / "a")), outcome)
    assert member(run).state == {"": "killed", "non_finite": "done"}.get(outcome, outcome)
    with pytest.raises(
        ValueError, match=r"/a is a run with other settings .* another --out:\n  optim.clip: 0.0 -> 1.0$"
    ):
        member(change(run, optim={"clip": 1.0}))


def test_a_run_that_failed_may_be_corrected(tmp_path: Path) -> None:
    run = stored(change(Run(), out=str(tmp_path / "a")), "user_error")
    assert member(change(run, optim={"clip": 1.0})).state == "user_error"


def test_a_failed_run_is_submitted_again_to_slurm(tmp_path: Path) -> None:
    run, plan = change(Run(), train={"epochs": 4.0, "batch": 64, "micro_batch": 16}), plan_of(3068, 4)
    options = TuneOptions(slurm=str(tmp_path / "lines.txt"))
    search = Search(run, run, plan, tmp_path / "search", options, StopSignal())
    first, second = (candidate(run, plan, tmp_path / "search", rate, 13) for rate in (3e-5, 3e-4))
    stored(first, "out_of_memory")
    stored(second, "done")
    with pytest.raises(
        ValueError, match=r"1 runs failed; unless .* `.*sbatch .*lines-1.txt.*`:\n  .*3e-05: out_of_memory"
    ):
        search._perform([first, second])
    assert len((tmp_path / "lines-1.txt").read_text().splitlines()) == 2


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    facts = {split: {"images": 9, "sha256": split, "contents": "sizes"} for split in ("train", "val")}
    for name, other in (("a", {}), ("b", {}), ("c", {"sha256": "others"}), ("d", {"contents": "others"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(json.dumps(facts | {"val": facts["val"] | other}))
    _reject_other_images([tmp_path / "a", tmp_path / "b"])
    for name in ("c", "d"):
        with pytest.raises(ValueError, match=rf"/a and .*/{name} were trained or judged on other images"):
            _reject_other_images([tmp_path / "a", tmp_path / "b", tmp_path / name])


def photos(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 9, 9)).save(path)
    return folder


def test_a_search_does_not_continue_on_other_images(tmp_path: Path) -> None:
    run = change(recipes.get("best-baseline"), data={"path": str(photos(tmp_path / "photos", {"a": 30, "b": 30}))})
    run = change(run, train={"batch": 16, "micro_batch": 16})
    _, _, splits = _planned(run, 0.0)
    out = tmp_path / "search" / "head"
    out.mkdir(parents=True)
    keep(out, look(splits))
    _reject_drift(tmp_path / "search", look(splits))
    (tmp_path / "photos" / "b" / "29.png").rename(tmp_path / "photos" / "a" / "30.png")
    with pytest.raises(ValueError, match=r"holds a search on other images \(.*\): use another --out"):
        _reject_drift(tmp_path / "search", look(_planned(run, 0.0)[2]))


def test_what_the_start_weights_were_trained_on_is_no_measure(tmp_path: Path) -> None:
    """A search holds out a part of what any run on these images trains on."""
    run = change(recipes.get("best-baseline"), data={"path": str(photos(tmp_path / "photos", {"a": 30, "b": 30}))})
    run = change(run, train={"batch": 16, "micro_batch": 16}, model={"weights": "none"})
    earlier = tmp_path / "earlier"
    (earlier / "best").mkdir(parents=True)
    (earlier / "config.yaml").write_text(to_yaml(change(run, out=str(earlier))))
    (earlier / "best" / "model.safetensors").touch()
    keep(earlier, look(load(run.data, run.seed)))
    run = change(run, model={"weights": str(earlier)}, out=str(tmp_path / "search"))
    held = len(_planned(run, 0.0)[2].val or ())
    message = rf"was trained on {held} of the {held} images .*: search with --model.weights none, or on images that"
    with pytest.raises(ValueError, match=message):
        tune(run, TuneOptions(), StopSignal())
    assert not (tmp_path / "search").exists()


def test_a_held_out_part_of_one_class_is_rejected(tmp_path: Path) -> None:
    photos(tmp_path / "photos" / "val", {"a": 3, "b": 3})
    path = str(photos(tmp_path / "photos" / "train", {"a": 61, "b": 3}).parent)
    run = change(recipes.get("best-baseline"), data={"path": path}, train={"batch": 16, "micro_batch": 16})
    with pytest.raises(
        ValueError, match=r"images that a search would hold out are all of class 'a'.*train with several"
    ):
        _planned(run, 0.0)


class Equal(Simulated):
    """Rates that are equally good in the mean, on images of which a few are hard."""

    def _try(self, steps: int, rates: Sequence[float]) -> None:
        for rate in set(rates) - {rate for done, rate in self.losses if done == steps}:
            losses = np.abs(self.images) * self.draws.gamma(2.0, 0.5, size=self.plan.held)
            self.losses[steps, rate] = losses
            self.spent += self.plan.cost(steps)


@pytest.mark.parametrize(("images", "epochs", "count"), [(3068, 4, 1000), (20724, 100, 300)])
def test_whole_searches_seldom_call_one_of_equal_rates_worse(
    images: int, epochs: float, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rates of each round chosen by the one before, on the same images."""
    monkeypatch.setattr("cls.commands.tune.search.trend", lambda *_: (0.0, 0.0, 0.0))  # 1,000 resamples each
    run, plan, wrong = (
        change(Run(), train={"epochs": epochs, "batch": 64, "micro_batch": 16}),
        plan_of(images, epochs),
        0,
    )
    for number in range(count):
        search = Equal(run, plan, tmp_path, 1.0)
        search.draws = generator(number, "equal")
        search.images = search.draws.gamma(0.3, 2.0, size=plan.held)
        rounds = search.result()["rounds"]
        assert len(rounds) == len(plan.rounds)
        wrong += any(row["verdict"] == "worse" for each in rounds for row in each["candidates"])
    assert wrong <= 0.05 * count
