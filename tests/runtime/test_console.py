"""Pages of text at the width of a terminal."""

import ctypes
import inspect
import os

import pytest

from cls import recipes
from cls.runtime.console import folded, stdout_to_stderr


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipes_page_keeps_its_words_and_fits(name: str, width: int) -> None:
    page = recipes.page(name)
    shown = folded(page, width)
    assert shown.split() == page.replace("``", "`").split()
    assert all(len(line) <= width for line in shown.splitlines())


def test_only_breaks_of_the_source_are_taken_out() -> None:
    long = "word " * 22 + "words"  # 115 characters: nothing fits behind it
    text = f"{long}\ngo on.\nMeant.\n\n  key  {long}\n"
    assert folded(text, 200) == f"{long} go on.\nMeant.\n\n  key  {long}"
    hung = folded(text, 60).split("\n\n")[1].splitlines()
    assert all(line.startswith(" " * 7) for line in hung[1:]) and len(hung) > 2


def test_a_variants_page_begins_with_its_changes_and_names_its_own_command() -> None:
    page = recipes.page("resnet50-mlp-plain")
    assert page.startswith("resnet50-mlp-plain is resnet50-mlp with\n  model.head: '512 bn silu dropout:0.5' -> ''\n\n")
    assert "train.py resnet50-mlp-plain --data.path" in page and "train.py resnet50-mlp --" not in page
    assert inspect.cleandoc(recipes.RECIPES["resnet50-mlp"].__doc__ or "").splitlines()[0] in page


def test_what_a_library_prints_does_not_reach_the_documents(capfd: pytest.CaptureFixture[str]) -> None:
    """A library in C++ knows nothing of Python's streams."""
    library = ctypes.CDLL(None)
    with stdout_to_stderr():
        library.puts(b"a library's line")
        library.fflush(None)
    os.write(1, b"a document\n")
    assert capfd.readouterr() == ("a document\n", "a library's line\n")
