"""``cls soup``: noisy copies of a network that fits average to it; a lost one does not help."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cls.commands.arguments import Evaluate, Export, Soup
from cls.commands.compare import notes, sheets
from cls.commands.evaluate import evaluate_images
from cls.commands.export.run import export
from cls.commands.options import EvaluateOptions, ExportOptions, PredictOptions, SoupOptions
from cls.commands.predict import predict_images
from cls.commands.soup import make_soup
from cls.data.dataset import EvalDataset, train_dataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.evaluation.compare import compare
from cls.evaluation.ensemble_record import EXPORTS, MEAN, check_place
from cls.evaluation.predictions import write_parquet
from cls.evaluation.soup import Score, average, difference, greedy, renew_norms, renewable
from cls.evaluation.trained_model import TrainedModel, load_trained_model
from cls.models.build import output_layer
from cls.runtime.signals import StopSignal
from tests.harness.untrained import CLASSES, member, photos

STOP = StopSignal()


def loaded(run: Path | str) -> TrainedModel:
    return load_trained_model(str(run), "cpu", 0, STOP)


def rewrite(run: Path | str, change: Any) -> None:
    """Replace the weights of a run by ``change`` of them."""
    file = Path(run) / "best" / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file, header)


def fit(run: str) -> None:
    """Solve the output layer by least squares on the training images, over norms that fit them."""
    trained = loaded(run)
    splits = trained.own_data(which=("train",))
    renew_norms(trained, splits, (), 32)
    rewrite(run, lambda _: trained.model.state_dict())
    train = splits.train
    layer, seen = output_layer(trained.model, trained.run.model), list[torch.Tensor]()
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    labels = torch.tensor(trained.predict(EvalDataset(train, (), trained.run)).labels)
    hook.remove()
    features = torch.cat(seen).double()
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    targets = 8 * nn.functional.one_hot(labels, len(CLASSES)).double() - 4
    solved = torch.linalg.solve(inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1]), inputs.T @ targets).float()
    rewrite(run, lambda state: state | {"fc.weight": solved[:-1].T, "fc.bias": solved[-1]})


def perturbed(run: str, scale: float) -> None:
    """Add noise to all weights, in a direction of its own: a positive and a negative ``scale`` cancel."""
    drawn = torch.Generator().manual_seed(5)

    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: value + scale * value.std() * torch.randn(value.shape, generator=drawn)
            if name.endswith("weight") and value.dim() > 1 else value
            for name, value in state.items()
        }  # fmt: skip

    rewrite(run, change)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), 9)


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two noisy copies of one network whose noise cancels, and one that has lost it; the last of another size."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for name, scale, size in (("plus", 0.15, 16), ("minus", -0.15, 16), ("lost", 9.0, 20)):
        found.append(member(root / name, images, size=size, optim={"lr": 10 + scale}))
        fit(found[-1])
        perturbed(found[-1], scale)
    return found


def soup(runs: list[str], to: Path, **more: Any) -> dict[str, Any]:
    return make_soup(runs, to, SoupOptions(**{"device": "cpu", "workers": 0, "norm_images": 32} | more), STOP)


def test_noise_that_cancels_leaves_a_better_network(runs: list[str], images: Path, tmp_path: Path) -> None:
    document = soup(runs, tmp_path / "soup")
    own = {row["run"]: row["accuracy"] for row in document["members"]}
    assert document["written"] and set(document["kept"]) == set(runs[:2])
    assert document["accuracy"] > max(own.values())
    assert document["gain"] == pytest.approx(document["accuracy"] - max(own.values()))
    assert document["low"] <= document["gain"] <= document["high"] and "optimistic" in document["judged"]
    assert json.loads((tmp_path / "soup" / "soup.json").read_text()) == document
    json.dumps(document, allow_nan=False)  # the loss of the lost one is infinite

    states = [load_file(Path(run) / "best" / "model.safetensors") for run in document["kept"]]
    found = load_file(tmp_path / "soup" / "best" / "model.safetensors")
    for name, value in found.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, ((states[0][name].double() + states[1][name].double()) / 2).float()), name
    soup(document["kept"][::-1], tmp_path / "again", workers=1)  # the same bits in another order, with other workers
    assert all(torch.equal(v, found[k]) for k, v in load_file(tmp_path / "again/best/model.safetensors").items())


def test_a_soup_is_used_like_a_run(runs: list[str], images: Path, tmp_path: Path) -> None:
    to, options = tmp_path / "soup", EvaluateOptions(device="cpu", workers=0)
    document = soup(runs[:2], to)
    figures = evaluate_images([str(to)], "", options, STOP)
    assert figures is not None and figures["accuracy"] == document["accuracy"]
    assert figures["loss"] == pytest.approx(document["loss"], rel=1e-3)
    for run in runs[:2]:
        trained = loaded(run)
        found = trained.predict(EvalDataset(trained.own_data().val, (), trained.run))
        write_parquet(Path(run) / "predictions" / "val.parquet", found)
    compared = compare([*runs[:2], str(to)])
    assert compared["groups"][2]["runs"][0]["accuracy"] == document["accuracy"]
    assert sheets(compared)[0].rows[2][1] == "soup of 2 runs"
    assert any("soup: chosen by validation images" in note for note in notes(compared))
    out = PredictOptions(out=str(tmp_path / "o"), device="cpu", workers=0)
    predicted = predict_images([str(to), runs[0]], [str(images / "test")], out, STOP)
    assert predicted == {"images": 36, "corrupt": 0, "folder": str(tmp_path / "o"), "members": [str(to), runs[0]]}
    assert export(str(to), tmp_path / "exported", ExportOptions(count=5), STOP)["images"] == 5
    (images / "val" / "ant" / "extra.png").write_bytes((images / "val" / "ant" / "0.png").read_bytes())
    try:
        with pytest.raises(ValueError, match="36 validation images then, 37 now"):  # data.json came with the weights
            evaluate_images([str(to)], "", options, STOP)
    finally:
        (images / "val" / "ant" / "extra.png").unlink()


def test_without_a_gain_nothing_is_written(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = soup([runs[2], runs[0]], tmp_path / "soup")
    assert not document["written"] and document["kept"] == [runs[0]] and document["gain"] == 0
    assert document["members"][1]["soup_accuracy"] < document["members"][0]["accuracy"] == document["accuracy"]
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "soup").exists()


def test_norms_are_renewed_on_augmented_training_images(runs: list[str]) -> None:
    """The mean over micro-batches of what a first norm sees; the mean of two networks' statistics is another."""
    trained = loaded(runs[0])
    splits = trained.own_data(which=("train",))
    first = renewable(trained.model, ())[0]
    seen: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    renew_norms(trained, splits, (), 35)
    hook.remove()
    size = trained.run.train.micro_batch
    assert [len(batch) for batch in seen] == [size] * (35 // size)
    assert not any(module.training for module in trained.model.modules())
    assert first.running_mean == pytest.approx(torch.stack([b.mean((0, 2, 3)) for b in seen]).mean(0), abs=1e-5)
    expected = torch.stack([batch.var((0, 2, 3)) for batch in seen]).mean(0)
    assert first.running_var == pytest.approx(expected, rel=1e-4)
    data = train_dataset(images_of(splits.train), trained.run)  # sample indices 0 to 15, in the run's own augmentation
    own, again = loaded(runs[0]), list[torch.Tensor]()
    renewable(own.model, ())[0].register_forward_pre_hook(lambda _, args: again.append(args[0]))
    with torch.no_grad():
        own.model(own.prepare(load_batch(data, range(size))))
    assert torch.equal(again[0], seen[0])
    assert {norm.momentum for norm in renewable(trained.model, ())} == {0.1}


def test_frozen_norms_keep_their_statistics(runs: list[str]) -> None:
    trained = loaded(runs[0])
    names = {id(module): name for name, module in trained.model.named_modules()}
    every, some = (renewable(trained.model, frozen) for frozen in ((), ("stem", "layer1")))
    left = {names[id(norm)] for norm in every} - {names[id(norm)] for norm in some}
    assert left and all(name.startswith(("layer1", "bn1", "conv1")) for name in left) and len(some) < len(every)


def test_the_greedy_rule_takes_what_does_not_lower_accuracy_then_loss() -> None:
    states = [{"w": torch.tensor([float(v)]), "n": torch.tensor(v)} for v in (1, 2, 3, 4)]
    scores = {1.5: Score(0.8, -0.5), 2.0: Score(0.7, -0.1), 2.333: Score(0.8, -0.6)}
    kept, trials = greedy(states, Score(0.8, -0.5), lambda state: scores[round(state["w"].item(), 3)])
    assert kept == [0, 1] and trials == [Score(0.8, -0.5), Score(0.8, -0.5), Score(0.7, -0.1), Score(0.8, -0.6)]
    mean = average(states[:3])
    assert mean["w"].item() == 2.0 and mean["n"].item() == 1  # a count is no mean


def started_from(run: str | Path, digest: str) -> None:
    """As a run records the file that its weights come from."""
    start = {"attempt": 0, "event": "start", "time": 1.0, "step": 0, "processes": 1, "device": "CPU", "host": "h"}
    Path(run, "events.jsonl").write_text(json.dumps(start | {"weights_sha256": digest}) + "\n")


def test_another_file_at_the_same_place_is_another_start(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    first, other = (member(tmp_path / name, images, model={"weights": str(weights)}) for name in ("a", "b"))
    assert difference(loaded(first), loaded(other)) == ""
    started_from(first, "1" * 64)
    assert difference(loaded(first), loaded(other)) == ""  # of an early version: not known
    started_from(other, "1" * 64)
    assert difference(loaded(first), loaded(other)) == ""
    started_from(other, "2" * 64)
    assert "was another file for each: they did not start from the same" in difference(loaded(first), loaded(other))


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"model": {"head": "9 relu"}}, "model.head is '' and '9 relu'"),
        ({"model": {"backbone": "resnext14_8x8d"}}, "model.backbone is 'timm/test_resnet' and 'resnext14_8x8d'"),
        ({"data": {"normalize": "imagenet"}}, "their images are normalised differently"),
        ({"seed": 1}, "model.weights is none, and seeds 0 and 1 drew different start weights"),
        ({"classes": ("bee", "ant", "cat", "dog")}, "their classes are in another order"),
    ],
)
def test_what_is_not_one_network_is_rejected_by_name(
    runs: list[str], images: Path, tmp_path: Path, sections: dict[str, Any], text: str
) -> None:
    other = member(tmp_path / "other", images, **sections)
    with pytest.raises(ValueError) as caught:
        soup([runs[0], other], tmp_path / "soup")
    assert str(caught.value) == f"{runs[0]} and {other} cannot be averaged: {text}"


def test_no_command_mixes_its_files_with_anothers(runs: list[str], tmp_path: Path) -> None:
    """Each place holds what one command has written; only that command may replace it."""
    holds = {"a run": "config.yaml", "a soup": "soup.json", MEAN: "ensemble.json", EXPORTS: "ensemble.json"}
    for number, file in enumerate(holds.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / file).write_text("{}")
    places = dict(zip(holds, (tmp_path / str(number) for number in range(4)), strict=True))
    (places[MEAN] / "predictions").mkdir()
    writers = {
        "a soup": lambda to: Soup(runs=tuple(runs), to=to, options=SoupOptions()),
        MEAN: lambda to: Evaluate(run=runs[0], path=(runs[1],), to=to),
        EXPORTS: lambda to: Export(run=runs[0], more=(runs[1],), to=to, options=ExportOptions()),
        "one export": lambda to: Export(run=runs[0], to=to, options=ExportOptions()),
    }
    for own, writer in writers.items():
        for kind, place in places.items():
            if kind == own:
                check_place(place, own)
                continue
            with pytest.raises(ValueError, match=f"{re.escape(str(place))} holds {kind}, with which its files would"):
                writer(str(place)).do(STOP)
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds an export of one run, with which it would be mixed"):
        writers[EXPORTS](str(tmp_path / "single")).do(STOP)
    check_place(tmp_path / "missing")


def test_places_and_words_are_checked(runs: list[str], images: Path, tmp_path: Path) -> None:
    for command, text in (
        (Soup(runs=(runs[0],), to="x", options=SoupOptions()), "a soup needs two or more runs"),
        (Soup(runs=tuple(runs), to=runs[1], options=SoupOptions()), "holds a run, with which"),
        (Soup(runs=(runs[0], runs[0]), to="x", options=SoupOptions(device="cpu")), "is named twice"),
    ):
        with pytest.raises(ValueError, match=text):
            command.do(STOP)
    with pytest.raises(ValueError, match="--norm-images must be at least 1, found 0"):
        SoupOptions(norm_images=0)
    fewer = member(tmp_path / "y", photos(tmp_path / "fewer", 5))
    with pytest.raises(ValueError, match="were not validated on the same images"):
        soup([runs[0], fewer], tmp_path / "soup")
