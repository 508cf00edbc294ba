"""The pages are true: layers, files, names, commands, links, pictures, counts."""

import re
import shlex
from pathlib import Path

import pytest

import cls
from cls import recipes
from cls.commands.arguments import COMMANDS
from cls.commands.main import parse_command
from cls.commands.parsing import parse_run
from cls.recipes.tables import SWEEPS, chosen
from tests.harness import ROOT
from tests.test_layers import LAYERS, modules, unit

README, GUIDE = ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md"
SUBJECTS = ("accelerate_configs", "cls/commands", "cls/data", "cls/recipes", "cls/tracking", "slurm", "tests")
PAGES = [README, GUIDE, *(ROOT / subject / "README.md" for subject in SUBJECTS)]
TEXT = {path: path.read_text() for path in PAGES}
ALL = "\n".join(TEXT.values())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def drawn() -> dict[str, int]:
    """The layer picture: lines such as ``L5  training loop: training evaluation``."""
    picture = re.search(r"```text\n(L\d.*?)```", TEXT[GUIDE], re.S)
    assert picture
    layers: dict[str, int] = {}
    for line in picture[1].splitlines():
        found = re.fullmatch(r"L(\d)  [^:]*: ([\w ]+?)(?:  +\(.*\))?", line)
        assert found, line
        for name in found[2].split():
            assert name not in layers, f"{name} is twice in the picture"
            layers[name] = int(found[1])
    return layers


def test_the_layer_picture_is_the_table_that_is_enforced() -> None:
    assert drawn() == LAYERS


def test_the_readme_leads_to_every_other_page() -> None:
    for page in PAGES[1:]:
        assert f"({named(page)}" in TEXT[README], page


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("accelerate_configs/*.yaml"))], ids=named)
def test_every_file_that_is_named_exists(page: Path) -> None:
    pattern = r"\b(?:cls|tests|slurm|accelerate_configs)/[\w/.-]*\w\.(?:py|sh|yaml|css|js|html)\b"
    files = set(re.findall(pattern, page.read_text()))
    assert {name for name in files if not (ROOT / name).is_file()} == set()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", TEXT[page], re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere_and_every_picture_is_shown() -> None:
    targets = set()
    for page, text in TEXT.items():
        for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            if not target.startswith("https://"):
                file, _, anchor = target.partition("#")
                path = (page.parent / file).resolve() if file else page
                assert path.exists(), f"{named(page)}: {target}"
                assert not anchor or anchor in anchors(path), f"{named(page)}: {target}"
                targets.add(path)
    pictures = set((ROOT / ".github" / "pictures").glob("*.png"))
    assert pictures and pictures <= targets
    sizes = [file.stat().st_size for file in pictures]
    assert max(sizes) < 150_000 and sum(sizes) < 500_000


def test_the_repositories_of_the_published_systems_are_on_one_page() -> None:
    """They are somebody's homework: named where they are needed, and nowhere else."""
    links = {named(page): re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", text) for page, text in TEXT.items()}
    assert {page for page, found in links.items() if found} == {"cls/recipes/README.md"}
    assert len(set(links["cls/recipes/README.md"])) == 5


def test_every_function_that_is_named_exists() -> None:
    """``cls.module.name`` in running text, and ``file.py: name`` nowhere else."""
    for name in set(re.findall(r"`(cls(?:\.\w+)+)", ALL)):
        module = max((m for m in modules() if name == m or name.startswith(f"{m}.")), key=len)
        rest = name.removeprefix(module).lstrip(".")
        assert not rest or re.search(rf"\b{rest}\b", modules()[module].read_text()), name
        assert unit(tuple(name.split("."))) in LAYERS or name.removeprefix("cls.") in cls.__all__


def test_every_name_of_the_guide_occurs_in_the_code() -> None:
    """Also those of tests and fields: a word in backticks that a renaming has left behind is found."""
    files = [*modules().values(), *ROOT.glob("tests/**/*.py"), ROOT / "pyproject.toml"]
    words = set(re.findall(r"\w+", " ".join(file.read_text() for file in files)))
    names = set(re.findall(r"`([A-Za-z_]\w+)(?:\(|`)", TEXT[GUIDE]))
    assert len(names) > 30 and names <= words, names - words


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
    for line in (line for text in TEXT.values() for line in printed(text)):
        for part in re.split(r" && ", line):
            words = shlex.split(re.sub(r"[…\[\]]", "", part))
            if program in words:
                found.append(words[words.index(program) + 1 :])
    return found


def test_every_cls_command_of_the_pages_is_understood() -> None:
    """Parsed as the program parses it; nothing is run."""
    commands = [words for words in words_after("cls") if words]
    assert len(commands) >= 20
    for words in commands:
        assert words[0] in COMMANDS, words
        parse_command(words[0], ["digits" if word == "RECIPE" else word for word in words[1:] if word != "--json"])
    assert {words[0] for words in commands} | set(re.findall(r"`cls (\w+)`", ALL)) == set(COMMANDS)


def test_every_training_command_of_the_pages_is_understood() -> None:
    commands = words_after("train.py")
    assert len(commands) >= 8
    for words in commands:
        words = ["digits" if word == "RECIPE" else word for word in words]
        if "--show" in words:
            with pytest.raises(SystemExit, match="0"):
                parse_run(words)
        else:
            parse_run(words)


def test_the_pages_count_recipes_and_tables_right_and_name_each_system() -> None:
    for what, count in (("recipes", len(recipes.RECIPES)), ("tables", len(SWEEPS))):
        counts = set(re.findall(rf"\b(\d+)\s+{what}\b", ALL))
        assert counts == {str(count)}, (what, counts)
    for name, (report, _) in recipes.describe().items():
        if report.startswith("report ") and chosen(name):
            assert f"| `{name}` |" in TEXT[ROOT / "cls/recipes/README.md"], name


def test_the_readme_is_a_front_door() -> None:
    lines = TEXT[README].splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 150
