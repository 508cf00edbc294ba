"""The fields of train.py on a command line, as its words: --section.field and its values."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from cls import recipes
from cls.config import RENAMED, Run, flat


def field_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words that set a field of a run, with their values; the others are options of the command."""
    known = flat(Run())
    return tuple(word for name, group in _groups(words) if name in known for word in group)


def field_names(words: Sequence[str]) -> set[str]:
    """The dotted names of the options on a command line."""
    return {name for name, _ in _groups(words)}


def renamed(argv: Sequence[str]) -> list[str]:
    """A command line with today's names of options; a job that was queued before an update may have the old ones."""
    found = []
    for word in argv:
        option, equals, value = word.partition("=")
        new = RENAMED.get(option.removeprefix("--").replace("-", "_"), "") if option.startswith("--") else ""
        found.append(f"--{new.replace('_', '-')}{equals}{value}" if new else word)
    return found


def option_of(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """A command line without an option that is no field, and its value: the last one, as for the parser; or None."""
    words, value = list[str](), None
    rest = iter(argv)
    for word in rest:
        if word == name:
            value = next(rest, "")
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
        else:
            words.append(word)
    return words, value


def typed_values(fields: Run, words: Sequence[str]) -> dict[str, Any]:
    """The fields on the command line and their values; ValueError for those that a sweep sets."""
    values, names = flat(fields), [name for name, _ in _groups(words)]
    if "seed" in names:
        raise ValueError("seed: a sweep has several; --seeds 3 takes 0, 1 and 2")
    if "recipe" in names:
        raise ValueError("recipe: the rows of a sweep are its recipes")
    return {name: values[name] for name in names if name != "out"}


def without_out(words: Sequence[str]) -> list[str]:
    """The words that all members share."""
    return [word for name, group in _groups(words) if name != "out" for word in group]


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """("data.path", ["--data.path", "photos"]) and so on."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
    for group in groups:
        yield group[0].removeprefix("--").partition("=")[0].replace("-", "_"), group


def changed_fields(run: Run, names: Collection[str] = ()) -> list[str]:
    """The fields in which a run differs from its recipe, with their values; of ``names`` only, if there are any."""
    usual, words = flat(recipes.get(run.recipe)), list[str]()
    for name, value in flat(run).items():
        if value != usual[name] and (not names or name in names):
            words += words_of(name, value)
    return words


def words_of(name: str, value: Any) -> list[str]:
    """A field with its value, as words of a command line."""
    flag, values = "--" + name.replace("_", "-"), [*map(str, value if isinstance(value, tuple) else (value,))]
    # a value with a leading dash would be read as a flag
    return [f"{flag}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [flag, *values]
