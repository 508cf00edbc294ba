"""What CONTRIBUTING.md and README.md say of the code is so: layers, files, names, commands, pictures."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from cls import recipes
from cls.commands.arguments import VERBS
from cls.commands.main import _command, parse_run
from cls.recipes.tables import SWEEPS, chosen
from tests.test_layers import LAYERS, modules, unit

GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()
SLURM = (ROOT / "slurm" / "README.md").read_text()


def drawn() -> dict[str, int]:
    """The layer picture: lines such as ``L2  effects: data parallel …`` and their continuations."""
    picture = re.search(r"```text\n(L3.*?)```", GUIDE, re.S)
    assert picture
    layers: dict[str, int] = {}
    layer = -1
    for line in picture[1].splitlines():
        begin = re.match(r"L(\d)  [^:]*:", line)
        if begin:
            layer = int(begin[1])
        for name in re.findall(r"[\w]+", line[begin.end() if begin else 0 :]):
            assert name not in layers, f"{name} stands twice in the picture"
            layers[name] = layer
    return layers


def test_the_layer_picture_is_the_table_that_is_enforced() -> None:
    assert drawn() == LAYERS


@pytest.mark.parametrize("text", [GUIDE, README, SLURM], ids=["CONTRIBUTING.md", "README.md", "slurm/README.md"])
def test_every_file_that_is_named_exists(text: str) -> None:
    named = set(re.findall(r"\b(?:cls|tests|slurm|accelerate_configs)/[\w/.-]*\w\.(?:py|sh|yaml|css|js|html)\b", text))
    assert len(named) >= 2
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_link_leads_to_a_file_and_every_picture_is_shown() -> None:
    places = [(ROOT, README), (ROOT / "slurm", SLURM), (ROOT / ".github", GUIDE)]
    targets = {
        (folder / target).resolve()
        for folder, text in places
        for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^":]+)"', text)
    }
    assert {str(file) for file in targets if not file.exists()} == set()
    pictures = set((ROOT / ".github" / "pictures").glob("*.png"))
    assert pictures and pictures <= targets
    sizes = [file.stat().st_size for file in pictures]
    assert max(sizes) < 150_000 and sum(sizes) < 500_000


def test_every_function_that_is_named_exists() -> None:
    """``cls.module.name`` in running text, and ``file.py: name`` nowhere else."""
    for name in set(re.findall(r"`(cls(?:\.\w+)+)", GUIDE + README)):
        module = max((m for m in modules() if name == m or name.startswith(f"{m}.")), key=len)
        rest = name.removeprefix(module).lstrip(".")
        assert not rest or re.search(rf"\b{rest}\b", modules()[module].read_text()), name
        assert unit(tuple(name.split("."))) in LAYERS


def printed(text: str) -> list[str]:
    """Command lines in fenced blocks and in running text, continued lines joined, remarks cut off."""
    lines, fence = re.findall(r"`(cls [a-z]+ [^`]+)`", text.replace("\n", " ")), ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fence = "" if fence else line.strip()
        elif fence == "```":
            lines.append(line.strip())
    return [re.split(r"\s+#\s|\s\|\s", line)[0].strip() for line in lines]


def words_after(program: str) -> list[list[str]]:
    found = []
    for line in [*printed(README), *printed(SLURM)]:
        for part in re.split(r" && ", line):
            words = shlex.split(re.sub(r"[…\[\]]", "", part))
            if program in words:
                found.append(words[words.index(program) + 1 :])
    return found


def test_every_cls_command_of_the_readme_is_understood() -> None:
    """Parsed as the program parses it; nothing is run."""
    commands = [words for words in words_after("cls") if words]
    assert len(commands) >= 20
    for words in commands:
        assert words[0] in VERBS, words
        _command(words[0], [word for word in words[1:] if word != "--json"])
    assert {words[0] for words in commands} | set(re.findall(r"`cls (\w+)`", README)) == set(VERBS)


def test_every_training_command_of_the_readme_is_understood(tmp_path: Path) -> None:
    commands = words_after("train.py")
    assert len(commands) >= 8
    for words in commands:
        words = ["digits" if word == "RECIPE" else word for word in words]
        if "--show" in words:
            with pytest.raises(SystemExit, match="0"):
                parse_run(words)
        else:
            parse_run(words)


def test_the_readme_counts_recipes_and_tables_right_and_names_each_system() -> None:
    assert f"{len(recipes.RECIPES)} recipes" in README and f"{len(SWEEPS)} tables" in README
    for name, (report, _) in recipes.describe().items():
        if report.startswith("report ") and chosen(name):
            assert f"| `{name}` |" in README, name
    assert len(README.splitlines()) <= 300
