"""Batch scripts of all styles: what SLURM reads in each line, and every known mistake by name."""

from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest

from cls.commands.plan.sbatch import Needs, check, gibibytes, read, requeues, seconds

GOOD = """#!/bin/bash
# trains on one node
#SBATCH --job-name=train
#SBATCH --partition=a6000
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=a6000:2
#SBATCH --cpus-per-task=8   # loader processes
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

trap 'touch stop' USR1
srun python train.py "$@" &
wait
"""
NEEDS = Needs(
    gpu="a6000", gpus=2, nodes=1, cores=6, host_gib=14.0, epoch_seconds=600.0, whole_seconds=20 * 3600.0
)  # fmt: skip


def test_a_good_script_has_no_problem() -> None:
    assert check(GOOD, NEEDS) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--gpus-per-node=a6000:2", "--gpus-per-node=2"),
        ("--gpus-per-node=a6000:2", "--gres=gpu:a6000:2"),
        ("--gpus-per-node=a6000:2", "--gres=gpu:2"),
        ("--gpus-per-node=a6000:2", "-G 2"),
        ("--gpus-per-node=a6000:2", "--gpus=A6000:2"),
        ("--nodes=1", "-N 1"),
        ("--nodes=1", "-N1"),
        ("--nodes=1\n#SBATCH --ntasks-per-node=1", "--nodes 1 -n 1"),
        ("--cpus-per-task=8", "-c 8"),
        ("--time=1-00:00:00", "-t 1440"),
        ("--time=1-00:00:00", "--time=UNLIMITED"),
        ("--mem=64G", "--mem=0"),
        ("--mem=64G", "--mem-per-cpu=2G"),
        ("--mem=64G", "--mem-per-gpu=8000"),
        ("--partition=a6000", "-p a6000 -A lab --exclusive"),
        ("--signal=B:USR1@120", "--signal=B:SIGUSR1@120"),
        ("trap 'touch stop' USR1", "source slurm/env.sh"),
        ("# trains on one node", "##SBATCH --qos=high"),
    ],
)
def test_other_ways_to_write_the_same_are_no_problem(old: str, new: str) -> None:
    assert old in GOOD
    assert check(GOOD.replace(old, new), NEEDS) == []


def swap(old: str, new: str) -> Callable[[str], str]:
    def swapped(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return swapped


def drop(line: str) -> Callable[[str], str]:
    return swap(f"#SBATCH {line}\n", "")


BAD: dict[str, tuple[Callable[[str], str], str, int, str]] = {
    # name: how the good script is spoilt, the rule, the line, a part of the text
    "option after the first command": (lambda t: t + "#SBATCH --qos=high\n", "form", 18, "after the first command"),
    "command before the options": (swap("# trains on one node", "set -e"), "form", 3, "first command (line 2)"),
    "space before SBATCH": (swap("#SBATCH --mem", "# SBATCH --mem"), "form", 9, "plain comment"),
    "output folder absent": (swap("--job-name=train", "--output=logs-x/%j.out"), "output folder", 3, "mkdir -p logs-x"),
    "error folder absent": (swap("--job-name=train", "-e 'my logs/e'"), "output folder", 3, "mkdir -p 'my logs'"),
    "no requeue": (drop("--requeue"), "requeue", 0, "add #SBATCH --requeue"),
    "requeue forbidden": (swap("--requeue", "--no-requeue"), "requeue", 11, "remove it"),
    "output overwritten": (drop("--open-mode=append"), "requeue", 0, "add #SBATCH --open-mode=append"),
    "output truncated": (swap("=append", "=truncate"), "requeue", 12, "overwritten"),
    "no signal": (drop("--signal=B:USR1@120"), "signal", 0, "--signal=B:USR1@120"),
    "signal not to the shell": (swap("B:USR1", "USR1"), "signal", 13, "without B:"),
    "signal too late": (swap("@120", "@30"), "signal", 13, "30 s are too short"),
    "no trap": (swap("trap 'touch stop' USR1", "true"), "signal", 13, "no trap for USR1"),
    "trap of another signal": (swap("stop' USR1", "stop' TERM"), "signal", 13, "no trap for USR1"),
    "a task per GPU": (swap("--ntasks-per-node=1", "--ntasks-per-node=2"), "tasks", 6, "needs one task"),
    "tasks and nodes differ": (swap("--ntasks-per-node=1", "--ntasks=2"), "tasks", 6, "--ntasks=2 on 1 node(s)"),
    "GPUs per task": (swap("--gpus-per-node=a6000:2", "--gpus-per-task=2"), "tasks", 7, "--gpus-per-node=2"),
    "no cores": (drop("--cpus-per-task=8   # loader processes"), "cores", 0, "--cpus-per-task=6"),
    "too few cores": (swap("--cpus-per-task=8", "-c 4"), "cores", 8, "4 cores cannot feed"),
    "no GPU": (drop("--gpus-per-node=a6000:2"), "gpus", 0, "--gpus-per-node=a6000:2"),
    "another GPU": (swap("--gpus-per-node=a6000:2", "--gres=gpu:rtx3090:2"), "gpus", 7, "asks for rtx3090"),
    "fewer GPUs": (swap("a6000:2", "a6000:1"), "gpus", 7, "is 1 GPU(s), but the plan has 2"),
    "more GPUs": (swap("--gpus-per-node=a6000:2", "-G 4"), "gpus", 7, "is 4 GPU(s), but the plan has 2"),
    "one GPU without a number": (swap("gpus-per-node=a6000:2", "gres=gpu:a6000"), "gpus", 7, "is 1 GPU(s)"),
    "more nodes": (swap("--nodes=1", "--nodes=2"), "gpus", 5, "--nodes=2, but the plan has 1"),
    "no time": (drop("--time=1-00:00:00"), "time", 0, "add #SBATCH --time"),
    "time too short for an epoch": (swap("1-00:00:00", "13"), "time", 10, "write --time=14 or more"),
    "time shorter than the run": (swap("1-00:00:00", "7:04:00"), "time", 10, "requeued 2 time(s)"),
    "memory too small": (swap("--mem=64G", "--mem=8G"), "memory", 9, "--mem=14G"),
    "memory without a unit": (swap("--mem=64G", "--mem=64"), "memory", 9, "megabytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_every_known_mistake_is_named_with_line_and_remedy(name: str) -> None:
    spoil, rule, line, part = BAD[name]
    found = check(spoil(GOOD), NEEDS)
    match = [p for p in found if p.rule == rule and p.line == line and part in p.text]
    assert len(match) == 1, found


SIDE_EFFECTS = {  # one mistake that is several: the options that are not read are missing
    "command before the options", "tasks and nodes differ", "more nodes",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(BAD) - SIDE_EFFECTS))
def test_a_mistake_gives_one_message(name: str) -> None:
    assert len(check(BAD[name][0](GOOD), NEEDS)) == 1


LEFT_TO_SBATCH = [  # tests/slurm/test_slurm.py: sbatch rejects each of them
    swap("#!/bin/bash\n", ""), swap("\n", "\r\n"), swap("--job-name=train", "output"),
    swap("--job-name=train", "--zzz=1"), swap("--job-name=train", "--comment=it's"), swap("--job-name=train", "-N"),
    swap("B:USR1@120", "B:USR1@2m"), swap("1-00:00:00", "24h"), swap("--mem=64G", "--mem=all"),
]  # fmt: skip


@pytest.mark.parametrize("spoil", LEFT_TO_SBATCH)
def test_what_sbatch_rejects_is_left_to_it(spoil: Callable[[str], str]) -> None:
    assert check(spoil(GOOD), NEEDS) == []


def test_an_existing_output_folder_is_no_problem(tmp_path: Path) -> None:
    good = GOOD.replace("--job-name=train", f"--chdir={tmp_path} --output=%x-%j.out")
    assert check(good, NEEDS) == []
    assert check(good.replace("--output=", "--output=logs/"), NEEDS)[0].rule == "output folder"
    (tmp_path / "logs").mkdir()
    assert check(good.replace("--output=", "--output=logs/"), NEEDS) == []


def test_only_lines_before_the_first_command_count() -> None:
    script = read(
        "#!/bin/bash\n\n#SBATCH -N 2 -t 60 -p x\n#comment\n#SBATCH -c8 -n 2 -o 'a b' -G 4 --requeue\nls\n#SBATCH -c 1\n"
    )
    assert {name: option.value for name, option in script.options.items()} == {
        "nodes": "2", "time": "60", "cpus-per-task": "8", "ntasks": "2", "output": "a b", "gpus": "4",
        "requeue": "",
    }  # fmt: skip
    assert script.body == 6 and script.line("gpus") == 5


def test_the_last_of_two_equal_options_counts_as_in_slurm() -> None:
    assert read("#!/bin/sh\n#SBATCH -c 2\n#SBATCH --cpus-per-task=4\n").get("cpus-per-task") == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("1:02:03", 3723), ("1-00", 86400), ("2-3", 183600),
        ("1-12:30", 131400), ("1-00:00:00", 86400), ("7-00:00:01", 604801), ("0", inf), ("UNLIMITED", inf),
        ("infinite", inf),
    ],
)  # fmt: skip
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "24h", "1d", "1:2:3:4", "-5", "1.5", "1-", "1-1:1:1:1", "tomorrow", "1 00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a SLURM time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64G", 64), ("2048", 2), ("512M", 0.5), ("1T", 1024), ("0", inf), ("16gb", 16), ("all", inf)],
)
def test_memory(text: str, expected: float) -> None:
    assert gibibytes(text) == expected


def test_requeues_leave_time_to_start_and_to_save() -> None:
    """A job of 24 h trains 24 h less 180 s and 60 s."""
    day, usable = 86400.0, 86400.0 - 240.0
    assert [requeues(day, n) for n in (1.0, usable, usable + 1, 3 * usable, 3 * usable + 1)] == [0, 0, 1, 2, 3]
    assert requeues(inf, 1e9) == 0
