"""Names of any script in pictures: with a font that has their letters if one is installed, else as escapes."""

from functools import cache

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

WIDE = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
        "Droid Sans Fallback", "IPAGothic", "Unifont")  # fmt: skip
"""Families with Chinese, Japanese and Korean letters, as Linux distributions package them."""


@cache
def _fonts() -> tuple[FT2Font, ...]:
    """The usual font and, after it, the first of WIDE that is installed; from now on pictures use both."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    usual = font_manager.FontProperties(family=rcParams["font.sans-serif"][0]).get_name()
    names = [usual, *[name for name in WIDE if name in installed][:1]]
    rcParams["font.family"] = names
    # of the files of a family, which have different letters, the one that is drawn with
    return tuple(FT2Font(str(font_manager.findfont(name))) for name in names if name in installed)


def drawable(text: str) -> str:
    """The text with ``\\uNNNN`` in place of each character that no font here has, which would be an empty box."""
    return "".join(
        one if one.isspace() or any(font.get_char_index(ord(one)) for font in _fonts()) else _escaped(one)
        for one in text
    )


def _escaped(one: str) -> str:
    return one.encode("ascii", "backslashreplace").decode()
