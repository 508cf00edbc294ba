"""Class names of any script in pictures: no empty boxes."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure

from cls.commands.contact_sheet import Panel, Tile, end, write_maps, write_panels, write_sheet
from cls.evaluation import fonts
from cls.evaluation.fonts import drawable


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with matplotlib.rc_context():
        fonts._fonts.cache_clear()
        yield
    fonts._fonts.cache_clear()


def test_what_the_usual_font_has_stays() -> None:
    for name in ("قطة", "longsleeve", "Größe 3 – „é“", "Ελληνικά", "Кошка", "a\nb c", "½ → ∞", ""):
        assert drawable(name) == name


def test_letters_that_no_font_has_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "WIDE", ())
    assert drawable("猫 cat") == "\\u732b cat" and drawable("😀") in ("😀", "\\U0001f600")


def test_a_font_that_has_them_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """STIX has letters that DejaVu lacks; both are part of matplotlib."""
    lacks, has = (font_manager.get_font(font_manager.findfont(name)) for name in ("DejaVu Sans", "STIXNonUnicode"))
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


def test_names_on_contact_sheets_have_no_empty_boxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fonts, "WIDE", ())
    pixels = np.zeros((16, 16, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile = Tile(torch.zeros(3, 16, 16, dtype=torch.uint8), {"猫": 0.7, "犬": 0.3}, 0, "写真/猫.jpg", pixels)
        write_sheet(tmp_path / "sheet.png", [tile], "one")
        write_panels(tmp_path / "panels.png", [Panel((pixels,), "one", ("train, 猫", "写真/猫.jpg"))], "写真")
        write_maps(tmp_path / "maps.png", [[(end("写真/猫.jpg", 34), pixels)]], end("写真", 20))
