"""The configuration as text, on the command line, and the values that are rejected before anything is built."""

import dataclasses
import math
import os
import re
import shlex
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cls import recipes, validate
from cls.commands.main import parse_command
from cls.commands.parsing import out_of, parse_run
from cls.config import RENAMED, RUNTIME_FIELDS, Data, Run, change, diff, flat, from_yaml, to_yaml
from cls.validate import check

SECTIONS = ("data", "augment", "model", "optim", "train", "track")


def with_value(run: Run, name: str, value: Any) -> Run:
    """A run with one field, by its dotted name, at another value."""
    section, _, key = name.rpartition(".")
    return change(run, **{section: {key: value}}) if section else dataclasses.replace(run, **{key: value})


# --- YAML ---


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_survives_yaml_and_passes_the_checks(name: str) -> None:
    run = recipes.get(name)
    again = from_yaml(to_yaml(run))
    assert again == run
    assert [type(value) for value in flat(again).values()] == [type(value) for value in flat(run).values()]
    assert run.recipe == name
    check(run)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_yaml(value: float) -> None:
    again = from_yaml(to_yaml(change(Run(), optim={"lr": value, "betas": (value, 0.5)})))
    assert again.optim.lr == value and math.copysign(1, again.optim.lr) == math.copysign(1, value)
    assert again.optim.betas == (value, 0.5)


@settings(deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" \n\t")))  # PyYAML folds U+0085
def test_every_text_survives_yaml(text: str) -> None:
    assert from_yaml(to_yaml(change(Run(), model={"head": text}))).model.head == text


@pytest.mark.parametrize("text", ["1e-4", "1e-05", "0.0001", "1E-4", "1.0e-4", ".0001", "+1e-4"])
def test_numbers_as_users_write_them(text: str) -> None:
    """YAML 1.1 reads those without a dot as strings."""
    assert from_yaml(f"optim: {{lr: {text}}}").optim.lr == float(text)


def test_missing_fields_have_their_defaults_and_integers_do_for_floats() -> None:
    assert from_yaml("{}") == Run()
    run = from_yaml("seed: 3\noptim: {lr: 1, betas: [0, 0.5]}\naugment: {tta: [hflip]}\nmodel: {cbam: [3, 4]}")
    assert run == change(Run(), seed=3, optim={"lr": 1.0, "betas": (0.0, 0.5)}, augment={"tta": ("hflip",)},
                         model={"cbam": (3, 4)})  # fmt: skip
    assert type(run.optim.lr) is float and type(run.optim.betas[0]) is float


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {lrr: 1.0}", ["unknown field optim.lrr", "did you mean optim.lr?"]),
        ("optim: {shedule: fixed}", ["optim.shedule", "optim.schedule"]),
        ("optm: {lr: 1.0}", ["unknown field optm", "did you mean optim?"]),
        ("zzz: 1", ["unknown field zzz"]),
        ("seed: one", ["seed must be a whole number", "found one"]),
        ("seed: 1.5", ["seed must be a whole number", "1.5"]),
        ("seed: true", ["seed must be a whole number", "found true"]),
        ("optim: {lr: true}", ["optim.lr must be a number", "found true"]),
        ("optim: {lr: [1.0]}", ["optim.lr must be a number", "[1.0]"]),
        ("optim: {lr: null}", ["optim.lr must be a number", "found null"]),
        ("optim: {lr: fast}", ["optim.lr must be a number", "found fast"]),
        ("optim: {name: adam}", ["optim.name must be one of adamw, sgd", "found adam"]),
        ("optim: {betas: [0.9]}", ["optim.betas must be a list of 2, each item a number", "[0.9]"]),
        ("optim: {betas: 0.9}", ["optim.betas must be a list of 2, each item a number", "0.9"]),
        ("model: {cbam: [one]}", ["model.cbam must be a whole number", "found one"]),
        ("augment: {order: [frame, flip]}", ["augment.order must be one of frame, hflip,", "found flip"]),
        ("data: {balanced: 1}", ["data.balanced must be true or false", "1"]),
        ("data: {path: 3}", ["data.path must be text", "3"]),
        ("data: {channels_last: 1}", ["unknown field data.channels_last", "did you mean train.channels_last?"]),
        ("data: {channels: {2026-01-02: 1}}", ["unknown field data.channels"]),
        ("train: {channels_last: 1}", ["train.channels_last must be one of auto, true, false", "found 1"]),
        ("data: {path: {2026-01-02: [a]}}", ["data.path must be text", "found {2026-01-02: [a]}"]),
        ("augment: {tta: hflip}", ["augment.tta must be a list, each item one of identity, hflip,", "found hflip"]),
        ("data: 3", ["data must be", "3"]),
        ("data:", ["data must be", "found null"]),
        ("data: [path]", ["data must be", "path"]),
        ("1: 2", ["unknown field 1"]),
        ("[1]", ["expected a mapping", "found a list"]),
        ("", ["expected a mapping", "found nothing"]),
        ("optim: {lr: 1", ["config", "line 1"]),
    ],
)
def test_bad_text_is_a_value_error_naming_the_field(text: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        from_yaml(text)
    for part in parts:
        assert part in str(caught.value)


def test_fields_are_read_by_the_names_of_earlier_versions() -> None:
    text = to_yaml(change(Run(), data={"max_corrupt": 0.25}))
    assert from_yaml(text.replace("max_corrupt", "max_bad")) == from_yaml(text)
    assert {name for name in RENAMED.values() if name not in flat(Run())} == set()


@pytest.mark.parametrize("words", [["--data.max-bad", "0.1"], ["--data.max_bad=0.1"]])
def test_an_option_of_an_earlier_version_is_read_and_its_new_name_printed(words: list[str], capsys: Any) -> None:
    """Jobs that were queued before an update, and sweeps of it, have the old name."""
    assert parse_run(["digits", *words]).data.max_corrupt == 0.1
    assert re.fullmatch(r"--data\.max.bad is now --data\.max-corrupt\n", capsys.readouterr().err)


# --- diff ---


def other(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if isinstance(value, tuple):
        return (*value, *value, "x") if not value or isinstance(value[0], str) else tuple(v + 1 for v in value)
    return {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.5, str: lambda: value + "x"}[
        type(value)
    ]()


def hint_of(name: str) -> Any:
    kind: Any = Run
    for part in name.split("."):
        kind = typing.get_type_hints(kind)[part]
    return kind


def test_diff_ignores_exactly_the_fields_of_the_moment() -> None:
    run, silent = Run(), set()
    for name, value in flat(run).items():
        new = other(value, hint_of(name))
        lines = diff(run, with_value(run, name, new))
        if lines:
            assert lines == [f"{name}: {value!r} -> {new!r}"]
        else:
            silent.add(name)
    assert silent == {
        "out", "data.copy", "data.max_corrupt", "data.workers", "train.device", "train.keep", "train.save_minutes",
        "train.max_steps", "track.wandb", "track.project", "track.name", "track.artifact", "track.tensorboard",
        "track.ledger",
    }  # fmt: skip
    assert diff(run, run) == []
    assert {name for name in flat(run) if name.startswith(RUNTIME_FIELDS)} == silent


def test_diff_names_every_change() -> None:
    new = change(Run(), seed=1, optim={"lr": 0.5}, train={"batch": 32})
    assert diff(Run(), new) == ["seed: 0 -> 1", "optim.lr: 0.0001 -> 0.5", "train.batch: 64 -> 32"]


# --- checks ---

BAD = [
    *((name, value, "must be greater than 0") for name in (
        "data.size", "train.epochs", "train.batch", "train.micro_batch", "train.eval_batch", "train.keep", "optim.lr",
        "optim.lr_batch", "optim.head_lr", "optim.stage_decay") for value in (0, -1)),
    *((name, -1, "must be 0 or more") for name in (
        "seed", "data.limit", "data.eval_size", "augment.mixup", "augment.cutmix", "model.gate", "optim.weight_decay",
        "optim.clip", "optim.class_weight", "optim.t_max", "optim.min_lr", "optim.patience", "optim.warmup",
        "train.max_steps", "train.early_stop", "train.save_minutes", "optim.head_epochs",
        "train.early_stop_change")),
    *((name, value, "must be from 0 to 1") for name in (
        "data.max_corrupt", "augment.hflip", "augment.vflip", "augment.translate", "augment.erase",
        "augment.mix_probability", "optim.label_smoothing") for value in (-0.01, 1.01)),
    *((name, value, "must be from 0 to below 1") for name in ("model.dropout3", "optim.ema", "optim.factor")
      for value in (-0.01, 1.0)),
    *(("augment.rotate", value, "from 0 to 180") for value in (-1.0, 180.5, 200.0)),
    *((f"augment.{name}", value, "from 0 to 10") for name in ("brightness", "contrast", "saturation")
      for value in (-0.1, 10.1)),
    *(("augment.randaugment", value, "from 0 to 14") for value in (-1, 15)),
    *((f"augment.{name}", value, "0 < from <= to <= 1") for name in ("crop_scale", "erase_scale")
      for value in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1))),
    *(("augment.zoom", value, "0 < from <= to <= 10") for value in ((0.0, 1.0), (1.2, 1.1), (1.0, 10.1))),
    *(("augment.hue", value, "0 to 0.5") for value in (-0.1, 0.51)),
    *(("augment.blur", value, "0 or odd") for value in (2, 4, -3)),
    *(("augment.randaugment_magnitude", value, "0 to 30") for value in (-1, 31)),
    *(("data.crop_pct", value, "above 0 and at most 1") for value in (0.0, -0.1, 1.1)),
    *(("data.val_fraction", value, "between 0 and 1") for value in (0.0, 1.0)),
    *(("optim.betas", value, "two numbers from 0 to below 1") for value in ((-0.1, 0.9), (0.9, 1.0))),
    *(("model.cbam", value, "different stages from 1 to 4") for value in ((5,), (0, 1), (4, 4))),
    ("data.workers", -2, "-1 (automatic), or 0 or more"),
    *((name, math.nan, "must be") for name in ("optim.lr", "augment.hflip", "optim.ema", "optim.clip", "augment.hue")),
    *((name, math.inf, "must be") for name in ("optim.lr", "optim.weight_decay")),
    ("train.micro_batch", 24, "does not divide train.batch 64: use --train.micro-batch 16"),
    ("train.micro_batch", 128, "does not divide train.batch 64: use --train.micro-batch 64"),
    ("train.compile", True, "--train.reduce fast"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values_are_rejected_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        check(with_value(Run(), name, value))
    assert message in str(caught.value)
    assert str(value) in str(caught.value) or value is True


@pytest.mark.parametrize("name", ["out", "data.path", "data.copy", "model.weights"])
def test_paths_that_are_no_utf8_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        check(with_value(Run(), name, os.fsdecode(b"/photos/\xff")))
    assert r"'/photos/\udcff': it must be UTF-8; rename it" in str(caught.value)
    check(with_value(Run(), name, "/photos/\u00e4\U0001f408"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augment.hflip", 0.0), ("augment.hflip", 1.0), ("optim.ema", 0.999), ("augment.crop_scale", (1.0, 1.0)),
        ("augment.hue", 0.5), ("augment.blur", 3), ("augment.randaugment_magnitude", 30), ("data.crop_pct", 1.0),
        ("data.workers", -1), ("data.workers", 0), ("train.micro_batch", 64), ("train.micro_batch", 1),
        ("optim.weight_decay", 0.0), ("data.val_fraction", 0.5), ("train.max_steps", 0), ("optim.betas", (0.0, 0.0)),
    ],
)  # fmt: skip
def test_values_at_the_borders_are_accepted(name: str, value: Any) -> None:
    check(with_value(Run(), name, value))


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"train": {"compile": True}}, ["train.compile", "--train.reduce fast"]),
        ({"optim": {"schedule": "warmup-cosine", "warmup": 5.0}, "train": {"epochs": 5}},
         ["optim.warmup is 5.0", "train.epochs 5", "add --optim.warmup 1.25"]),
        ({"optim": {"schedule": "warmup-cosine", "warmup": 4.0, "head_epochs": 1.0}, "train": {"epochs": 5}},
         ["optim.warmup is 4.0", "train.epochs 5 less optim.head_epochs 1: add --optim.warmup 1"]),
        ({"optim": {"head_epochs": 5.1}, "train": {"epochs": 5}},
         ["optim.head_epochs is 5.1, more", "train.epochs 5: add --optim.head-epochs 0"]),
        ({"optim": {"head_epochs": 0.5, "schedule": "cosine"}, "train": {"epochs": 2.5}},
         ["optim.head_epochs is 0.5", "cosine moves by whole epochs: add --optim.head-epochs 1"]),
        ({"optim": {"head_epochs": 0.5, "schedule": "cosine"}, "train": {"epochs": 0.8}},
         ["optim.head_epochs is 0.5", "add --optim.head-epochs 0"]),
        ({"optim": {"head_epochs": 2.6, "schedule": "plateau"}, "train": {"epochs": 5}},
         ["optim.head_epochs is 2.6", "plateau moves by whole epochs: add --optim.head-epochs 3"]),
        ({"optim": {"head_epochs": 1.0}, "model": {"weights": "none"}},
         ["optim.head_epochs", "model.weights is none: add --optim.head-epochs 0"]),
        ({"optim": {"loss": "mse", "label_smoothing": 0.1}}, ["optim.label_smoothing", "optim.loss mse"]),
        ({"optim": {"schedule": "cosine", "lr": 1e-4, "min_lr": 1e-3}},
         ["optim.min_lr", "0.001", "0.0001: the rate"]),
        ({"optim": {"min_lr": 5e-4, "lr": 1e-3, "lr_batch": 64, "scale_lr": "linear"}, "train": {"batch": 16}},
         ["optim.min_lr is 0.0005", "optim.lr 0.001, which for train.batch 16 is 0.00025"]),
    ],
)  # fmt: skip
def test_combinations_that_cannot_train(sections: dict[str, dict[str, Any]], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        check(change(Run(), **sections))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"compile": True, "reduce": "fast"}},
        {"optim": {"schedule": "warmup-cosine", "warmup": 4.9}, "train": {"epochs": 5}},
        {"optim": {"schedule": "fixed", "warmup": 9.0}, "train": {"epochs": 5}},
        {"optim": {"schedule": "warmup-cosine", "warmup": 3.9, "head_epochs": 1.0}, "train": {"epochs": 5}},
        {"optim": {"schedule": "warmup-cosine", "warmup": 1.0, "head_epochs": 5.0}, "train": {"epochs": 5}},
        {"optim": {"loss": "mse"}},
        {"optim": {"label_smoothing": 0.1}},
        {"optim": {"min_lr": 2e-3, "lr": 1e-3, "lr_batch": 64, "scale_lr": "linear"}, "train": {"batch": 256}},
    ],
)
def test_their_neighbours_can(sections: dict[str, dict[str, Any]]) -> None:
    check(change(Run(), **sections))


def test_the_proposed_micro_batch_is_the_largest_divisor_not_above_the_wanted_one() -> None:
    for batch in range(1, 40):
        for wanted in range(1, 50):
            divisors = [d for d in range(2, batch + 1) if batch % d == 0 and d <= wanted]
            assert validate._divisor(batch, wanted) == max(divisors, default=batch)  # 1 is none: BatchNorm needs two


def test_every_number_has_exactly_one_rule_and_a_bad_value_here() -> None:
    numeric = {name for name in flat(Run()) if re.search(r"\b(int|float)\b", str(hint_of(name)))}
    ruled = [name for _, _, names in validate.RULES for name in names]
    assert numeric == set(ruled) == {name for name, *_ in BAD} - {"train.compile"}
    assert len(ruled) == len(set(ruled))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"order": ("frame",), "hflip": 0.5}, "augment.order: 'hflip' is used, but not in the order"),
        ({"order": ("hflip",), "hflip": 0.5}, "augment.order: 'frame' is used, .* use --augment.order hflip frame$"),
        (
            {"order": ("frame", "erase"), "erase": 0.5, "trivialaugment": True},
            "is used, but not in the order frame erase: use --augment.order frame trivialaugment erase$",
        ),
        ({"order": ("frame",), "zoom": (0.9, 1.0)}, "augment.order: 'affine' is used, but not in"),
        ({"order": ("frame",), "saturation": 0.1}, "augment.order: 'jitter' is used, but not in"),
        ({"order": ("frame", "hflip", "hflip"), "hflip": 0.5}, "augment.order: each operation at most once.*hflip"),
        ({"order": ("frame", "vflip", "vflip")}, "augment.order: each operation at most once.*vflip"),
        ({"order": ("erase", "frame"), "erase": 0.5}, "augment.order: 'erase' must come last, but 'frame' follows it"),
    ],
)
def test_impossible_orders_of_augmentations_are_rejected(augment: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(change(Run(), augment=augment))


def test_operations_at_zero_need_no_place_in_the_order() -> None:
    check(change(Run(), augment={"order": ("frame",)}))
    check(change(Run(), augment={"order": ("erase", "frame")}))


def test_commands_that_read_images_check_the_same_numbers() -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction is 1\.0: it must be between 0 and 1"):
        validate.check_data(Data(path="photos", val_fraction=1.0))
    validate.check_data(Data(path="photos"))


NUMBERS = [one for one in BAD if isinstance(one[1], tuple) or (type(one[1]) in (int, float) and math.isfinite(one[1]))]


@pytest.mark.parametrize(("name", "value", "message"), NUMBERS)
def test_a_bad_number_is_rejected_before_the_run_directory_is_claimed(
    name: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else config.yaml would hold it, and the corrected command would be another configuration."""
    monkeypatch.chdir(tmp_path)
    words = map(str, value if isinstance(value, tuple) else (value,))
    with pytest.raises(ValueError, match=f"^{re.escape(name)} is ") as caught:
        parse_run(["digits", "--out", "run", "--train.batch", "64", f"--{name}", *words])
    assert message in str(caught.value) and not any(tmp_path.iterdir())


# --- the command line ---


def test_both_spellings_types_and_tuples() -> None:
    run = parse_run(
        ["mlp-head", "--optim.lr", "1e-3", "--optim.betas", "0.8", "0.9", "--train.batch=32", "--data.balanced", "True",
         "--train.channels-last=False", "--model.cbam", "3", "4", "--augment.tta", "hflip", "crop", "--seed=9",
         "--data.path=/tmp/a b", "--model.head", "500 relu", "--out", "runs/x", "--train.micro_batch", "8"]
    )  # fmt: skip
    expected = change(
        recipes.get("mlp-head"), seed=9, optim={"lr": 1e-3, "betas": (0.8, 0.9)},
        train={"batch": 32, "micro_batch": 8, "channels_last": False}, data={"balanced": True, "path": "/tmp/a b"},
        model={"cbam": (3, 4), "head": "500 relu"}, augment={"tta": ("hflip", "crop")},
    )  # fmt: skip
    assert run == dataclasses.replace(expected, out="runs/x")


def test_no_words_and_no_recipe_are_the_digits() -> None:
    assert parse_run([]) == recipes.get("digits")
    assert parse_run(["--seed", "4"]) == dataclasses.replace(recipes.get("digits"), seed=4)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data.path", "my photos"], "data.path is my photos"),
        (["--data.path=photos", "--seed", "1"], "data.path is photos"),
        (["--seed", "1", "--data.path", "photos", "--show"], "data.path is photos"),
        (["--data.copy", "/scratch/photos"], "data.copy is /scratch/photos"),
        (["--data.copy=/scratch/photos", "--data.path=photos"], "data.copy is /scratch/photos"),
    ],
)
@pytest.mark.parametrize("program", ["train.py", "cls show", "cls plan", "cls bench", "cls fetch"])
def test_photos_need_a_recipe_and_the_command_that_is_shown_works(
    words: list[str], named: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one they would train the digits network, at 32 pixels."""
    called = program.split()[-1]
    own = [word for word in words if word != "--show"] if called != "train.py" else words

    def parse(argv: list[str]) -> Run:
        if called != "train.py":
            return parse_command(called, argv).run
        with suppress(SystemExit):
            return parse_run(argv)
        return from_yaml(capsys.readouterr().out)

    with pytest.raises(ValueError, match=named) as caught:
        parse(own)
    text, command = str(caught.value).split("e.g. ")
    assert all(f" {name}," in text for name in ("digits", "best", "mlp-head", "cbam-mixup", "se-resnext"))
    assert command.startswith(f"{program} best ")
    run = parse(shlex.split(command)[len(program.split()) :])
    assert run.recipe == "best" and (run.data.path, run.data.copy) != ("digits", "")
    assert parse(["digits", *own]).recipe == "digits"  # one may want it


def test_an_empty_tuple_switches_off() -> None:
    assert recipes.get("mlp-head").augment.tta
    assert parse_run(["mlp-head", "--data.path", "x", "--augment.tta"]).augment.tta == ()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--optim.lrr", "3"], "--optim.lr "),
        (["--optim.lrr=3"], "--optim.lr "),
        (["--train.microbatch", "3"], "--train.micro-batch"),
        (["--optim.lr", "abc"], "--optim.lr"),
        (["--train.batch", "1.5"], "--train.batch"),
        (["--optim.name", "adam"], "--optim.name"),
        (["--data.balanced", "maybe"], "--data.balanced"),
        (["--optim.betas", "0.9"], "--optim.betas"),
    ],
)
def test_misspelt_or_ill_typed_words_name_the_nearest_field(
    args: list[str], part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as caught:
        parse_run(["digits", *args])
    assert caught.value.code not in (0, None)
    captured = capsys.readouterr()
    assert part in captured.err + captured.out


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'mlp-haed'; did you mean mlp-head"):
        parse_run(["mlp-haed"])
    with pytest.raises(ValueError, match="unknown recipe 'qqqqqq'"):
        parse_run(["qqqqqq"])


def test_the_recipe_is_the_first_word_only() -> None:
    with pytest.raises(ValueError, match="recipe is the first word"):
        parse_run(["digits", "--recipe", "mlp-head"])


def test_bad_values_of_the_command_line_are_rejected_by_name() -> None:
    with pytest.raises(ValueError, match=r"train\.batch is 0"):
        parse_run(["--train.batch", "0"])


def test_show_prints_yaml_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_run(["cbam-mixup", "--optim.lr", "1e-5", "--show"])
    assert caught.value.code in (0, None)
    assert from_yaml(capsys.readouterr().out) == change(recipes.get("cbam-mixup"), optim={"lr": 1e-5})


def test_help_has_a_sentence_for_every_field(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # one column
    with pytest.raises(SystemExit):
        parse_run(["digits", "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    words = " ".join(line for line in lines if not line.startswith(("╭", "╰", "─")))
    options = [f"--{name.replace('_', '-')} " for name in flat(Run())]
    places = [words.find(option) for option in options]
    assert -1 not in places
    assert places == sorted(places)
    for option, start, stop in zip(options, places, [*places[1:], None], strict=True):
        assert re.search(r"[A-Z0-9'-].{15,}[.)] \(default: ", words[start:stop]), f"{option}: {words[start:stop]!r}"


def test_the_run_directory_is_readable_in_a_broken_command_line() -> None:
    assert out_of(["digits", "--out", "runs/a", "--nonsense"]) == "runs/a"
    assert out_of(["digits", "--out=runs/a"]) == "runs/a"
    assert out_of(["digits"]) == out_of(["digits", "--out"]) == ""
