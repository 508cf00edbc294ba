"""``cls compare`` on run directories and predictions files as runs leave them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cls.commands.arguments import Compare
from cls.commands.compare import markdown, sheets
from cls.config import Run, change, to_yaml
from cls.evaluation.compare import about, compare, verdict
from cls.evaluation.curves import read_groups
from cls.evaluation.metrics import accuracy
from cls.evaluation.predictions import Predictions, write_parquet
from cls.evaluation.stats import images_needed, mcnemar, paired_difference, pooled_accuracy, wilson
from cls.runtime.files import write_whole
from cls.runtime.signals import StopSignal
from tests.harness import ROOT, environment

CLASSES = ("0", "1", "2", "10")
N = 300


def predictions(right: np.ndarray, ids: list[str] | None = None) -> Predictions:
    """N images in turn of the four classes, given their class or the next one."""
    n = len(right)
    labels = np.arange(n) % 4
    probs = np.full((n, 4), 0.1)
    probs[np.arange(n), np.where(right, labels, (labels + 1) % 4)] = 0.7
    ids = ids or [f"{CLASSES[c]}/photo {i}.jpg" for i, c in enumerate(labels)]
    return Predictions(ids=ids, labels=labels, probs=probs, errors=[""] * n, classes=CLASSES, loss=1.0)


def make_run(folder: Path, found: Predictions, run: Run, split: str = "val") -> str:
    write_parquet(folder / "predictions" / f"{split}.parquet", found)
    write_whole(folder / "config.yaml", to_yaml(change(run, track={"name": folder.name})).encode())
    return str(folder)


def guesses(seed: int, rate: float) -> np.ndarray:
    """Which of the images one network gets right; some are harder than others, for all networks."""
    noise = np.random.default_rng([seed, int(1000 * rate)]).normal(size=N)
    score = np.random.default_rng(0).normal(size=N) + 0.6 * noise
    return score < np.quantile(score, rate + 0.004 * seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three seeds each of a plain run and of two others, and one run of one seed."""
    tmp_path, made = tmp_path_factory.mktemp("runs"), {}
    for name, rate, lr in (("plain", 0.75, 1e-4), ("fine", 0.9, 1e-3), ("alike", 0.77, 3e-4)):
        for seed in range(3):
            run = change(Run(), seed=seed, optim={"lr": lr}, data={"workers": seed})
            made[f"{name}-s{seed}"] = make_run(tmp_path / f"{name}-s{seed}", predictions(guesses(seed, rate)), run)
    run = change(Run(), recipe="other", train={"batch": 128}, augment={"crop_scale": (0.35, 1.0)})
    made["single"] = make_run(tmp_path / "single", predictions(guesses(9, 0.8)), run)
    return made


def test_runs_that_differ_only_in_the_seed_are_one_group(runs: dict[str, str]) -> None:
    document = compare(list(runs.values()))
    assert [(g["group"], g["seeds"]) for g in document["groups"]] == [
        ("plain", 3), ("fine", 3), ("alike", 3), ("single", 1)
    ]  # fmt: skip
    assert (document["baseline"], document["images"], document["classes"], document["split"]) == ("plain", N, 4, "val")
    plain, fine, alike = (np.array([guesses(s, rate) for s in range(3)]) for rate in (0.75, 0.9, 0.77))
    group, pooled = document["groups"][1], pooled_accuracy(fine)
    assert (group["mean"], group["sd"], group["low"]) == pytest.approx((pooled.mean, pooled.sd, pooled.low), abs=1e-12)
    for row, right in zip(group["runs"], fine, strict=True):
        assert row["accuracy"] == right.mean() and (row["low"], row["high"]) == wilson(right.mean(), N)
    assert [row["seed"] for row in group["runs"]] == [0, 1, 2] and document["groups"][3]["sd"] is None
    better, same, _ = document["comparisons"]
    expected = paired_difference(plain, fine)
    assert (better["difference"], better["low"], better["high"], better["p"]) == (
        expected.difference, expected.low, expected.high, expected.p
    )  # fmt: skip
    assert better["told_apart"] and better["verdict"].startswith(f"better by {100 * expected.difference:.1f} points (")
    assert "only_group" not in better and better["test"] != "exact McNemar"
    needed = paired_difference(plain, alike).images_needed
    assert not same["told_apart"] and same["images_needed"] == int(needed)
    text = f"cannot be told apart on 300 images and 3 seeds each; about {about(needed):,} would be needed"
    assert same["verdict"] == text
    assert all(row["p_holm"] >= row["p"] for row in document["comparisons"])


def test_seeds_that_started_from_other_files_at_one_place_are_not_one_group(tmp_path: Path) -> None:
    run = change(Run(), model={"weights": "./start.safetensors"})
    paths = []
    for seed, digest in enumerate(("1" * 64, "1" * 64, "2" * 64)):
        found = predictions(guesses(seed, 0.8))
        paths.append(make_run(tmp_path / f"run-s{seed}", found, replace(run, seed=seed)))
        start = {"attempt": 0, "event": "start", "time": 1.0, "step": 0, "processes": 1, "device": "CPU", "host": "h"}
        Path(paths[-1], "events.jsonl").write_text(json.dumps(start | {"weights_sha256": digest}) + "\n")
    document = compare(paths)
    assert [len(group["runs"]) for group in document["groups"]] == [2, 1]
    assert document["fields"] == {"model.weights": ["./start.safetensors (11111111)", "./start.safetensors (22222222)"]}
    for path in paths:
        Path(path, "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "val/loss": 1.0, "val/accuracy": 0.5}\n')
    assert [len(group.runs) for group in read_groups(paths)[0]] == [2, 1]


def test_other_files_under_the_same_names_are_noted(tmp_path: Path) -> None:
    """As after packing them at another size, or after replacing them."""
    paths = [make_run(tmp_path / name, predictions(guesses(0, 0.8)), change(Run(), optim={"lr": rate}))
             for name, rate in (("a", 0.1), ("b", 0.2), ("c_d", 0.3))]  # fmt: skip
    facts = {"images": N, "sha256": ""}
    for path, contents in zip(paths, ("one", "one", "two"), strict=True):
        split = facts | {"contents": contents}
        (Path(path) / "data.json").write_text(json.dumps({"train": split, "val": split}))
    assert compare(paths[:2])["other_files"] == []
    document = compare(paths)
    assert document["other_files"] == [paths[2]]
    (note,) = [line for line in markdown(document).splitlines() if "Other files" in line]
    assert "/c\\_d have the same names, but other sizes" in note
    assert not any("Other files" in line for line in markdown(compare(paths[:2])).splitlines())


def test_fields_that_differ_are_shown_without_seed_and_machine(runs: dict[str, str]) -> None:
    document = compare([runs["plain-s0"], runs["fine-s0"], runs["single"]])
    assert document["fields"] == {
        "recipe": ["digits", "digits", "other"],
        "augment.crop_scale": [(0.08, 1.0), (0.08, 1.0), (0.35, 1.0)],
        "optim.lr": [1e-4, 1e-3, 1e-4],
        "train.batch": [64, 64, 128],
    }


def test_two_single_runs_are_told_apart_by_their_discordant_images(runs: dict[str, str]) -> None:
    row = compare([runs["plain-s0"], runs["fine-s0"]])["comparisons"][0]
    first, second = guesses(0, 0.75), guesses(0, 0.9)
    assert row["test"] == "exact McNemar" and row["p"] == mcnemar(first, second) == row["p_holm"]
    assert row["only_baseline"] == (first & ~second).sum() and row["only_group"] == (second & ~first).sum()
    turned = compare([runs["plain-s0"], runs["fine-s0"]], baseline="fine-s0")["comparisons"][0]
    assert turned["verdict"].startswith("worse by") and turned["difference"] == -row["difference"]
    assert row["low"] > 0 and "to -" not in turned["verdict"] and "(-" not in turned["verdict"]


def test_any_run_or_group_can_be_the_baseline(runs: dict[str, str]) -> None:
    for name in ("alike", "alike-s1", runs["alike-s2"]):
        document = compare(list(runs.values()), baseline=name)
        assert document["baseline"] == "alike" and [row["group"] for row in document["comparisons"]] == [
            "plain", "fine", "single"
        ]  # fmt: skip
    with pytest.raises(ValueError, match=r"baseline is 'elsewhere': name one of plain, fine, alike, single"):
        compare(list(runs.values()), baseline="elsewhere")


def test_classes_are_ranked_by_what_they_did_to_the_accuracy(runs: dict[str, str]) -> None:
    row = compare([runs["plain-s0"], runs["fine-s0"]])["comparisons"][0]
    change_in_images = [abs(c["difference"] * c["images"]) for c in row["classes"]]
    assert change_in_images == sorted(change_in_images, reverse=True) and {c["class"] for c in row["classes"]} == {
        *CLASSES
    }
    total = sum(c["difference"] * c["images"] for c in row["classes"]) / N
    assert total == pytest.approx(row["difference"], abs=1e-12)
    labels = np.arange(N) % 4
    for c in row["classes"]:
        mine = labels == CLASSES.index(c["class"])
        assert c["baseline"] == pytest.approx(guesses(0, 0.75)[mine].mean())
        assert c["p"] == mcnemar(guesses(0, 0.75)[mine], guesses(0, 0.9)[mine])


def test_rows_and_classes_may_stand_in_another_order(tmp_path: Path) -> None:
    found, right = predictions(guesses(0, 0.8)), guesses(1, 0.85)
    other = predictions(right)
    order = np.random.default_rng(0).permutation(N)
    back = [3, 0, 2, 1]
    mixed = replace(
        other, ids=[other.ids[i] for i in order], labels=np.array([back.index(c) for c in other.labels[order]]),
        probs=other.probs[order][:, back], classes=tuple(CLASSES[c] for c in back),
    )  # fmt: skip
    write_parquet(tmp_path / "a.parquet", found)
    write_parquet(tmp_path / "b.parquet", other)
    write_parquet(tmp_path / "c.parquet", mixed)
    straight, turned = (compare([str(tmp_path / "a.parquet"), str(tmp_path / f"{x}.parquet")]) for x in "bc")
    assert straight["groups"][1]["mean"] == right.mean()
    assert {**straight["comparisons"][0], "group": ""} == {**turned["comparisons"][0], "group": ""}


def test_broken_images_are_wrong_and_counted(tmp_path: Path) -> None:
    found = predictions(np.ones(N, bool))
    broken = replace(found, errors=["cut short"] * 6 + [""] * (N - 6))
    runs = [make_run(tmp_path / "whole", found, Run()), make_run(tmp_path / "broken", broken, change(Run(), seed=1))]
    group = compare(runs)["groups"][0]
    assert [row["corrupt"] for row in group["runs"]] == [0, 6]
    assert [row["accuracy"] for row in group["runs"]] == [1.0, (N - 6) / N] == [accuracy(found), accuracy(broken)]


def test_a_predictions_file_of_a_run_has_that_runs_configuration(runs: dict[str, str]) -> None:
    files = [f"{runs[name]}/predictions/val.parquet" for name in ("plain-s0", "plain-s1", "fine-s0")]
    document = compare(files)
    assert sheets(document)[0].title == "Accuracy on 300 images of 4 classes"  # of which split, the files do not say
    assert [(g["group"], g["seeds"]) for g in document["groups"]] == [("plain", 2), ("fine-s0", 1)]
    assert document["comparisons"][0]["verdict"] == compare([runs[n] for n in ("plain-s0", "plain-s1", "fine-s0")])[
        "comparisons"
    ][0]["verdict"]  # fmt: skip


def test_two_predictions_of_one_run_are_two_things(tmp_path: Path) -> None:
    """Do the test-time views help? And a file beside the run of the same name is not the run."""
    plain, views = predictions(guesses(0, 0.8)), predictions(guesses(0, 0.9))
    first = Path(make_run(tmp_path / "run-s0", plain, Run()))
    other = make_run(tmp_path / "run-s1", plain, change(Run(), seed=1))
    write_parquet(first / "predictions" / "val_tta.parquet", views)
    for names in ([f"{first}/predictions/{split}.parquet" for split in ("val", "val_tta")],
                  [other, f"{first}/predictions/val_tta.parquet"]):  # fmt: skip
        groups = compare(names)["groups"]
        assert [(g["mean"], g["seeds"]) for g in groups] == [(accuracy(plain), 1), (accuracy(views), 1)]
    write_parquet(tmp_path / "run-s0.parquet", views)
    document = compare([str(first), str(tmp_path / "run-s0.parquet")])
    assert [g["group"] for g in document["groups"]] == [str(first), str(tmp_path / "run-s0.parquet")]
    assert document["comparisons"][0]["difference"] == pytest.approx(accuracy(views) - accuracy(plain))


def test_a_run_cut_short_is_not_another_seed(tmp_path: Path) -> None:
    found = predictions(guesses(0, 0.8))
    whole = make_run(tmp_path / "whole", found, Run())
    cut = make_run(tmp_path / "cut", found, change(Run(), seed=1, train={"max_steps": 5}))
    document = compare([whole, cut])
    assert [g["seeds"] for g in document["groups"]] == [1, 1] and document["fields"] == {"train.max_steps": [0, 5]}
    row = document["comparisons"][0]
    assert row["verdict"] == "cannot be told apart on 300 images: equally often right"
    assert row["images_needed"] is None and row["p"] == 1


def test_the_test_split_is_compared_where_it_is_labelled(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, predictions(guesses(seed, rate)), change(Run(), optim={"lr": rate}), "test")
        for seed, (name, rate) in enumerate((("a", 0.7), ("b", 0.9)))
    ]
    document = compare(runs, split="test")
    assert document["comparisons"][0]["told_apart"] and sheets(document)[0].title.startswith("Accuracy on 300 test im")
    blind = replace(predictions(guesses(0, 0.5)), labels=np.full(N, -1))
    with pytest.raises(ValueError, match=r"test\.parquet has no labels, so nothing in it is right or wrong"):
        compare([make_run(tmp_path / "blind", blind, Run(), "test")], split="test")
    with pytest.raises(ValueError, match=r"val\.parquet does not exist: a run writes it when it ends"):
        compare(runs)


def test_other_images_are_refused_with_counts_and_examples(tmp_path: Path) -> None:
    found = predictions(guesses(0, 0.8))
    fewer = predictions(guesses(0, 0.8)[:295], found.ids[:295])
    renamed = replace(found, ids=["new.jpg", *found.ids[1:]])
    relabelled = replace(found, labels=np.where(np.arange(N) < 2, 3, found.labels))
    for name, other, text in (
        ("fewer", fewer, "5 of the 300 images of {0} are not in {1} (3/photo 295.jpg"),
        ("renamed", renamed, "1 of the 300 images of {1} are not in {0} (new.jpg)"),
        ("relabelled", relabelled, "2 have another label (0/photo 0.jpg: 0 / 10, 1/photo 1.jpg: 1 / 10)"),
        ("unlabelled", replace(found, labels=np.where(np.arange(N) < 1, -1, found.labels)), "1 of the 300 images"),
    ):
        runs = [make_run(tmp_path / name / "a", found, Run()), make_run(tmp_path / name / "b", other, Run(seed=1))]
        with pytest.raises(ValueError) as caught:
            compare(runs)
        expected = text.format(*runs).replace("3/photo 295.jpg", found.ids[295])
        assert expected in str(caught.value) and "cannot be compared" in str(caught.value)
        assert "--split test" in str(caught.value) and len(str(caught.value)) < 1000


def test_what_is_no_run_is_one_clear_message(tmp_path: Path, runs: dict[str, str]) -> None:
    strange = tmp_path / "strange.parquet"
    strange.write_bytes(b"PAR1")
    twice = predictions(guesses(0, 0.8))
    old = Path(make_run(tmp_path / "old", twice, Run())) / "config.yaml"
    old.write_text(old.read_text().replace("  lr:", "  learning_rate:"))
    write_parquet(tmp_path / "twice.parquet", replace(twice, ids=[twice.ids[1], *twice.ids[1:]]))
    for words, text in (
        ([], "name at least one run directory"),
        ([str(tmp_path / "nowhere")], "is neither a run directory"),
        ([str(tmp_path / "nowhere.parquet")], "does not exist"),
        ([str(strange)], "not a predictions file of cls"),
        ([str(tmp_path / "twice.parquet")], "holds image '1/photo 1.jpg' more than once"),
        (
            [runs["plain-s0"], runs["fine-s0"], runs["plain-s0"]],
            "have one configuration and one seed: name one of them",
        ),
        ([str(tmp_path / "old")], f"{tmp_path / 'old'}/config.yaml: config: unknown field optim.learning_rate"),
    ):
        with pytest.raises(ValueError) as caught:
            compare(words)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ([("base/seed0", "base/seed1"), ("best/seed0", "best/seed1")], ["base", "best"]),
        ([("run_seed=10", "run_seed=11"), ("run_lr_seed=10", "run_lr_seed=11")], ["run", "run_lr"]),
        ([("resnet50-0", "resnet50-1"), ("resnet50",)], ["resnet50-0", "resnet50"]),  # both would be called resnet50
        ([("classes-1", "classes-2"), ("x",)], ["classes", "x"]),
        ([("one", "two"), ("three",)], ["one", "three"]),
    ],
)
def test_groups_are_called_what_their_folders_share(
    tmp_path: Path, folders: list[tuple[str, ...]], names: list[str]
) -> None:
    paths = [
        make_run(tmp_path / folder, predictions(guesses(seed, 0.8)), change(Run(), seed=seed, optim={"lr": lr + 1.0}))
        for lr, same in enumerate(folders)
        for seed, folder in enumerate(same)
    ]
    assert [group["group"] for group in compare(paths)["groups"]] == names


def test_verdicts_are_in_words() -> None:
    first, second = np.zeros((1, 50), bool), np.ones((1, 50), bool)
    found = paired_difference(first, second)
    assert (
        verdict(replace(found, difference=0.018, low=0.004, high=0.032), 3000, (1, 1))
        == "better by 1.8 points (0.4 to 3.2)"
    )
    worse = replace(found, difference=-0.018, low=-0.032, high=-0.004)
    assert verdict(worse, 3000, (1, 1)) == "worse by 1.8 points (0.4 to 3.2)"
    unsure = replace(found, difference=0.01, low=-0.02, high=0.04, images_needed=4123)
    assert verdict(unsure, 300, (1, 1)) == "cannot be told apart on 300 images; about 4,100 would be needed"
    seeds = replace(unsure, images_needed=float("inf"))
    assert verdict(seeds, 300, (3, 2)) == (
        "cannot be told apart on 300 images and 3 against 2 seeds; "
        "with as few seeds no number of images would be enough"
    )
    assert [about(n) for n in (7, 86, 1049, 995_000)] == [7, 86, 1000, 1_000_000]
    assert about(images_needed(0.01, 0.0652)) == 5100


def test_the_verb_prints_tables_json_and_markdown(runs: dict[str, str], tmp_path: Path) -> None:
    words = ["compare", runs["plain-s0"], runs["plain-s1"], runs["fine-s0"], "--to", "table.md", "--json"]
    program = "from cls.commands.main import main\nmain()\nimport sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program, *words], env=environment(PYTHONPATH=str(ROOT)),
                          capture_output=True, text=True, timeout=120, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    row = document["comparisons"][0]
    assert f"fine-s0 against plain: {row['verdict']}" in done.stderr.splitlines()
    assert "Accuracy on 300 val images of 4 classes" in done.stderr and "optim.lr" in done.stderr
    text = (tmp_path / "table.md").read_text()
    assert f"- **fine-s0 against plain: {row['verdict']}**" in text
    assert "| optim.lr | 0.0001 | 0.001 |" in text and "| · " + runs["plain-s1"].replace("_", "\\_") in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.count("|") >= 3
    again = json.loads(json.dumps(compare([*words[1:4]])))
    assert document == again


def test_the_best_of_many_is_not_praised_for_its_luck(tmp_path: Path) -> None:
    base = np.arange(N) >= 60
    lucky = base.copy()
    lucky[[*range(18), *range(100, 106)]] ^= True  # 18 more right, 6 more wrong
    others = [np.roll(base, shift) for shift in (60, 120, 180, 240)]  # as many right, other ones
    paths = []
    for i, right in enumerate([base, lucky, *others]):
        paths.append(str(tmp_path / f"{i}.parquet"))
        write_parquet(Path(paths[-1]), predictions(right))
    alone, among = (compare(paths[:k])["comparisons"][0] for k in (2, 6))
    assert alone["p"] == among["p"] == mcnemar(base, lucky) == alone["p_holm"] and among["p_holm"] == 5 * alone["p"]
    assert 0.01 < alone["p"] < 0.05 and alone["verdict"].endswith(")") and "chance" not in alone["verdict"]
    praise = f"{alone['verdict']}; among 5 comparisons this may be chance (Holm's p is {5 * alone['p']:.2f})"
    assert among["verdict"] == praise


def test_one_group_alone_has_a_table_and_nothing_to_compare(runs: dict[str, str]) -> None:
    document = compare([runs["plain-s0"], runs["plain-s1"]])
    assert document["comparisons"] == [] and document["fields"] == {}
    assert [sheet.title for sheet in sheets(document)] == ["Accuracy on 300 val images of 4 classes"]
    assert markdown(document).startswith("### Accuracy on 300 val images of 4 classes\n\n| run | seed | accuracy |")


def test_a_folder_cannot_be_written_as_a_file(runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to: .* is a folder: name a file in it"):
        Compare(runs=(runs["single"],), to=str(tmp_path)).do(StopSignal())


def test_names_with_marks_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]a|b*_c", "[/red]plain"]
    paths = [make_run(tmp_path / name, predictions(guesses(i, 0.8)), change(Run(), optim={"lr": i + 1.0}))
             for i, name in enumerate(names)]  # fmt: skip
    to = tmp_path / "out.md"
    Compare(runs=tuple(paths), to=str(to)).do(StopSignal())
    assert "| \\[red\\]a\\|b\\*\\_c |" in to.read_text()
    shown = capsys.readouterr().err
    assert "[red]a|b*_c" in shown and "[/red]plain" in shown


def test_what_is_no_finished_run_is_skipped_and_named(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `cls compare runs/best-*` finds them: logs, tables, runs that failed, were killed or go on."""
    killed, failed, log, table = (tmp_path / name for name in ("killed", "failed", "a.log", "table.md"))
    for folder in (killed, failed):
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(Run()))
    (failed / "exit.json").write_text('{"outcome": "data"}')
    log.write_text("")
    table.write_text("")
    (tmp_path / "empty").mkdir()
    more = [str(path) for path in (killed, failed, log, table, tmp_path / "empty")]
    whole = [runs["plain-s0"], runs["fine-s0"]]
    document = compare([more[0], *whole, *more[1:]])
    assert document["skipped"] == {
        more[0]: "killed, no predictions", more[1]: "data, no predictions",
        **dict.fromkeys(more[2:], "no config.yaml"),
    }  # fmt: skip
    assert {**document, "skipped": {}} == compare(whole)
    Compare(runs=(*more, *whole), to=str(tmp_path / "to.md")).do(StopSignal())
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipped"))
    assert line.startswith("Skipped: 5 of 7 hold no finished run: ") and all(path in line for path in more)
    assert "- Skipped: 5 of 7" in (tmp_path / "to.md").read_text()


def test_too_few_finished_runs_are_an_error(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(Run()))
    one, none = runs["single"], str(tmp_path / "run")
    for paths in ([one, none], [none, one], [none, str(tmp_path)]):
        with pytest.raises(ValueError, match=r"nothing is left to compare: . of 2 hold no finished run: .*killed"):
            compare(paths)
    with pytest.raises(ValueError, match=r"val\.parquet does not exist: a run writes it when it ends"):
        compare([none])
    with pytest.raises(ValueError, match=r"baseline is .*run: it holds no finished run \(killed, no predictions\)"):
        compare([one, runs["plain-s0"], none], baseline=none)
    with pytest.raises(ValueError, match=r"nowhere is neither a run directory"):  # a slip of the pen is none of them
        compare([one, runs["plain-s0"], str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"test\.parquet does not exist|no test split"):
        compare([one, runs["plain-s0"]], split="test")


def test_it_loads_neither_torch_nor_matplotlib(runs: dict[str, str]) -> None:
    """Each takes a second or more, and no figure of the comparison needs them."""
    code = (
        "import contextlib, sys, cls.commands.main as program\n"
        "with contextlib.suppress(SystemExit):\n"
        "    program.main()\n"
        "print(sorted({'torch', 'torchvision', 'matplotlib', 'datasets', 'timm', 'wandb'} & set(sys.modules)))\n"
    )
    words = ["compare", runs["plain-s0"], runs["single"]]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert ended.returncode == 0 and ended.stdout == "[]\n", ended.stdout + ended.stderr
