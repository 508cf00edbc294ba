"""What a person would want to know before a long run, one line each; nothing here changes the run."""

import shlex

from cls import recipes
from cls.config import Run, flat
from cls.distributed.world import World
from cls.models.backbones import input_statistics, pretrained_size
from cls.runtime.system import cores
from cls.tracking.seen_images import earlier_runs


def hints(run: Run, world: World) -> list[str]:
    """Cores that a run on a CPU leaves idle, values chosen for another network, weights of a run of another network,
    and a run of the head alone.
    """
    found = (_idle_cores(run, world), _other_backbone(run), _other_start(run), _head_alone(run))
    return [line for line in found if line]


def _idle_cores(run: Run, world: World) -> str:
    most = min(cores(), run.train.batch // run.train.micro_batch)
    if world.device.type != "cpu" or run.train.reduce != "exact" or world.size > 1 or most == 1:
        return ""
    return (
        f"one of {cores()} cores trains: accelerate launch --config_file accelerate_configs/cpu.yaml --num_processes "
        f"{most} train.py … gives the same bits with more of them"
    )


def _other_backbone(run: Run) -> str:
    """A rate belongs to a network; one that was changed with it is not questioned."""
    if run.recipe not in recipes.RECIPES:  # of an earlier version
        return ""
    usual, own = recipes.get(run.recipe), run.model.backbone
    if own == usual.model.backbone or run.optim.lr != usual.optim.lr:
        return ""
    size = pretrained_size(run.model)
    trained = f"; its weights were trained at {size} px, data.size is {run.data.size}" * (0 < size != run.data.size)
    words = ["cls", "tune", run.recipe, "--data.path", run.data.path, "--model.backbone", own,
             "--model.weights", run.model.weights]  # fmt: skip
    return (
        f"the rate of {run.recipe}, {run.optim.lr:g}, is meant for {usual.model.backbone}, not for {own}{trained}; "
        f"to find one: {shlex.join(words)} and the other options of this run"
    )


def _other_start(run: Run) -> str:
    """Another network may have the same names and shapes, and other input the same network."""
    source, earlier = next(earlier_runs(run), (None, None))
    if earlier is None:
        return ""
    pairs = {field: (flat(earlier)[field], flat(run)[field]) for field in ("model.backbone", "model.cbam_chained")} | {
        "the mean and deviation of the input": (input_statistics(earlier), input_statistics(run))
    }
    text = "; ".join(f"{field} was {then}, is {now}" for field, (then, now) in pairs.items() if then != now)
    return f"model.weights: {source} was trained otherwise: {text}" if text else ""


def _head_alone(run: Run) -> str:
    if not 0 < run.optim.head_epochs == run.train.epochs:
        return ""
    return (
        f"only the head trains: optim.head_epochs {run.optim.head_epochs:g} is the whole run; for the network too, add "
        "epochs or --optim.head-epochs 0"
    )
