"""Runs that differ only in the seed are one group, with a short name."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, TypeVar

from cls.tracking.run_files import without_seed

SEED_WORD = r"[-_/.= ]+(seed|s)?[-_/.= ]*\d*$"  # what is left of it when the end of a name is taken away


@dataclass(frozen=True)
class Named:
    """One run, and its configuration where it has one."""

    name: str
    """Path of the run directory or file, as given."""
    file: str
    """The stem of its predictions file: val and val_tta of one run differ."""
    config: dict[str, Any]
    """All fields by dotted name; empty for a file outside of a run directory."""

    @property
    def kind(self) -> str:
        """Equal for runs that differ only in the seed; its own name if the configuration is unknown."""
        kept = without_seed(self.config)
        return repr((self.file, kept)) if kept else self.name


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class Group(Generic[N]):
    """Runs that differ only in the seed."""

    name: str
    members: list[N]


def group_up(members: Sequence[N]) -> list[Group[N]]:
    """Runs that differ only in the seed, in order of first mention; ValueError for a run named twice."""
    kinds: dict[str, list[N]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    for same in kinds.values():
        seeds: dict[Any, str] = {}
        for member in same:
            seed = member.config.get("seed")
            if seed in seeds:
                raise ValueError(
                    f"{seeds[seed]} and {member.name} have one configuration and one seed: name one of them, or a copy "
                    "of its predictions file"
                )
            seeds[seed] = member.name
    names = _names(list(kinds.values()))
    return [Group(name, same) for name, same in zip(names, kinds.values(), strict=True)]


def _names(kinds: Sequence[Sequence[Named]]) -> list[str]:
    """Short, different names: the paths without their common folder and without the seed."""
    paths = [
        os.path.abspath(re.sub(r"(/predictions/(val|test))?\.parquet$", "", m.name)) for same in kinds for m in same
    ]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    short = iter([os.path.relpath(path, folder) for path in paths])
    firsts, names = [], []
    for same in kinds:
        own = [next(short) for _ in same]
        firsts.append(own[0])
        shared = "".join(letters[0] for letters in takewhile(lambda x: len(set(x)) == 1, zip(*own, strict=False)))
        names.append(re.sub(SEED_WORD, "", shared) or own[0] if len(own) > 1 else own[0])
    given = [same[0].name for same in kinds]  # RUN and RUN.parquet are both called RUN
    return next(found for found in (names, firsts, given) if len(set(found)) == len(found))


def differing(groups: Sequence[Group[Any]]) -> dict[str, list[Any]]:
    """Fields in which the groups differ: one value per group, None without a configuration."""
    configs = [group.members[0].config for group in groups]
    fields = next((list(without_seed(config)) for config in configs if config), [])
    known = [config for config in configs if config]
    return {
        field: [config.get(field) for config in configs]
        for field in fields
        if len({repr(config[field]) for config in known}) > 1
    }
