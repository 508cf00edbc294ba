"""Class names of any script in pictures: no empty boxes."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from cls.evaluation import fonts
from cls.evaluation.fonts import drawable


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with matplotlib.rc_context():
        fonts._fonts.cache_clear()
        yield
    fonts._fonts.cache_clear()


def test_what_the_usual_font_has_stays() -> None:
    for name in ("longsleeve", "Größe 3 – „é“", "Ελληνικά", "Кошка", "a\nb c", "½ → ∞", ""):
        assert drawable(name) == name


def test_letters_that_no_font_has_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "WIDE", ())
    assert drawable("猫 cat") == "\\u732b cat" and drawable("😀") in ("😀", "\\U0001f600")


def test_a_font_that_has_them_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """STIX has letters that DejaVu lacks; both are part of matplotlib."""
    there = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    lacks, has = (font_manager.get_font(there[name]) for name in ("DejaVu Sans", "STIXNonUnicode"))
    letter = chr(next(code for code in sorted(has.get_charmap()) if code > 128 and not lacks.get_char_index(code)))
    monkeypatch.setattr(fonts, "WIDE", ())
    assert drawable(letter).startswith("\\u")
    fonts._fonts.cache_clear()
    monkeypatch.setattr(fonts, "WIDE", ("no such font", "STIXNonUnicode"))
    assert drawable(letter) == letter
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each missing glyph
        figure = Figure()
        figure.add_subplot().set_title(f"class {letter}")
        figure.savefig(tmp_path / "title.png")
