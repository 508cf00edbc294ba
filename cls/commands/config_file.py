"""``--config FILE``: the fields of a YAML file, as if they were typed before those of the command line.

Run as a program with a command line of train.py as its arguments, it prints that line with the fields of the file, each
word ended by NUL: slurm/train.sh looks for ``out`` and ``data.path`` in it.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from cls import recipes
from cls.commands.fields import field_names, option_of, renamed, words_of
from cls.config import RENAMED, flat, from_yaml
from cls.runtime.paths import expand_home

HELP = (
    "--config FILE takes fields from a YAML file, all or some, as a run's config.yaml has them; the command line "
    "overrules them, and the file's recipe is the default one."
)


def with_config(argv: list[str], sweep: bool = False) -> list[str]:
    """A command line with the fields of ``--config FILE``, after its first word, in place of that option.

    Fields that are on the command line are left out. The first word is the recipe, by default the file's; for a
    ``sweep``, whose rows are recipes, the file has none. ValueError, naming the file: it cannot be read or is not YAML,
    its fields are unknown, ill-typed or there twice, or its recipe is missing or another one.
    """
    words, path = option_of(argv, "--config")
    if path is None:
        return argv
    if sum(word == "--config" or word.startswith("--config=") for word in argv) > 1:
        raise ValueError("config is given twice: put the fields into one file")
    if not path or path.startswith("--"):
        raise ValueError("config: the option has no value; name a YAML file")
    if option_of(words, "--start-from")[1] is not None:
        raise ValueError("config: --start-from takes the configuration of its run: leave out one of the two")
    first, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    file = Path(expand_home("config", path))
    fields = _read(file)
    recipe = fields.pop("recipe", [])[1:]
    if sweep and recipe:
        raise ValueError(f"config: {file}: recipe is {recipe[0]}: a sweep's rows are its recipes, leave it out")
    if not sweep and not (first or recipe):
        raise ValueError(
            f"config: {file} has no recipe: add a line such as `recipe: best`, or name one as the first word "
            "(`cls recipes` lists them)"
        )
    if not sweep and first and recipe and first != recipe:
        raise ValueError(
            f"config: {file}: recipe is {recipe[0]}, but the first word is {first[0]}: leave out one of the two"
        )
    typed = field_names(renamed(rest))
    return [*(first or recipe), *(word for name, group in fields.items() if name not in typed for word in group), *rest]


def _read(file: Path) -> dict[str, list[str]]:
    """The fields of a file, dotted, as words of a command line."""
    try:
        if file.is_dir():
            raise ValueError("it is a folder: name a file in it, such as config.yaml")
        if not file.is_file():
            raise ValueError("it is not a regular file" if file.exists() else "there is no such file")
        text = file.read_bytes().decode()
        values = flat(from_yaml(text))
        found = Counter(_names(yaml.compose(text)))
        twice = [name for name, count in found.items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice: leave one out")
        if any("<<" in name for name in found):
            raise ValueError("merge keys (<<) are not supported: write the fields out")
        if "recipe" in found:
            recipes.get(values["recipe"])
    except OSError as error:
        raise ValueError(f"config: {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config: {file} is not UTF-8 (byte {error.start}): save it as UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"config: {file}: {str(error).removeprefix('config: ')}") from None
    return {name: words_of(name, value) for name, value in values.items() if name in found}


def _names(root: yaml.Node | None) -> Iterator[str]:
    """Sections and dotted fields, by today's names; one that is there twice, of which YAML takes the last, twice."""
    assert isinstance(root, yaml.MappingNode)
    for key, value in root.value:
        yield key.value
        if isinstance(value, yaml.MappingNode):
            for inner, _ in value.value:
                name = f"{key.value}.{inner.value}"
                yield RENAMED.get(name, name)


if __name__ == "__main__":
    try:
        sys.stdout.write("".join(f"{word}\0" for word in with_config(sys.argv[1:])))
    except ValueError as error:
        print(f"user error: {error}", file=sys.stderr)
        sys.exit(2)
