"""The pictures of the pages, made of the embedded digits, in .github/pictures.

python tests/pictures.py [RUN]      RUN: a finished run of the recipe digits; without it, one is trained (2 minutes)

Needs Debian's chromium and the extra 'test'. Look at each picture before you commit it.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from sklearn.datasets import load_digits

from cls.runtime.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / ".github" / "pictures"
DESKTOP, PHONE = (1000, 760), (390, 1090)
MARGIN = 16  # pixels above and below what is cut out of a page
LARGEST, LARGEST_ALL = 150_000, 500_000  # bytes: the pictures come with every clone


def cls(place: Path, *words: str, code: int = 0) -> None:
    done = subprocess.run([sys.executable, "-m", "cls", *words], cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == code, (words, done.returncode)


def train(to: Path) -> None:
    subprocess.run([sys.executable, "train.py", "--track.wandb", "disabled", "--out", str(to)], cwd=ROOT, check=True)


def store(name: str, png: bytes | Path, width: int = 0) -> None:
    """A PNG of at most 256 colours, reduced to ``width`` pixels where it is wider."""
    picture = Image.open(png if isinstance(png, Path) else io.BytesIO(png)).convert("RGB")
    if 0 < width < picture.width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(packed, format="PNG", optimize=True)
    assert packed.tell() < LARGEST, f"{name}: {packed.tell():,} bytes"
    write_whole(PICTURES / name, packed.getvalue())
    print(f"{name}: {picture.width} × {picture.height}, {packed.tell():,} bytes")


def photograph(browser: Browser, file: Path, size: tuple[int, int], first: str = "", last: str = "") -> bytes:
    """The page at this window size: what is seen at once, or from the top of one element to the bottom of another."""
    width, height = size
    with browser.new_page(viewport={"width": width, "height": height}, color_scheme="light") as page:
        page.goto(file.as_uri())
        if not first:
            return page.screenshot()
        boxes = [page.locator(name).first.bounding_box() for name in (first, last)]
        assert boxes[0] and boxes[1], (first, last)
        top, bottom = max(0.0, boxes[0]["y"] - MARGIN), boxes[1]["y"] + boxes[1]["height"] + MARGIN
        return page.screenshot(full_page=True, clip={"x": 0, "y": top, "width": width, "height": bottom - top})


def planted(root: Path) -> None:
    """Four digits of each class as PNG files in train/ and val/, with faults that `cls check` should find."""
    digits = load_digits()

    def picture(row: int) -> Image.Image:
        grey = Image.fromarray((digits.images[row] * 15.9).astype(np.uint8))
        return grey.resize((160, 160), Image.Resampling.BICUBIC)

    def save(image: Image.Image, name: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)

    rows = [np.flatnonzero(digits.target == label)[:8] for label in range(10)]
    for label in range(10):
        for number, row in enumerate(rows[label][:4]):
            save(picture(row), f"{'train' if number < 3 else 'val'}/{label}/{row}.png")
    save(picture(rows[4][0]).resize((90, 90)), "val/4/smaller duplicate.png")
    save(picture(rows[8][1]).point(lambda grey: grey * 0.8), "val/8/darker duplicate.png")
    save(picture(rows[6][2]), "train/0/same as a six.png")
    save(picture(rows[3][5]), "train/5/a three.png")
    save(picture(rows[2][5]), "train/7/a two.png")
    (root / "train/9/cut off.png").write_bytes((root / f"train/9/{rows[9][0]}.png").read_bytes()[:900])


def main(run: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if run:  # under the name that the page then shows
            shutil.copytree(run, work / "digits", ignore=shutil.ignore_patterns("checkpoints"))
        else:
            train(work / "digits")
        cls(work, "report", "digits", "--to", "report.html")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            store("report.png", photograph(browser, work / "report.html", DESKTOP, "body", "#curves"))
            store("confusion.png", photograph(browser, work / "report.html", DESKTOP, "#confusion", "#confusion"))
            store("phone.png", photograph(browser, work / "report.html", PHONE))
            browser.close()
        cls(work, "show", "digits", "--to", "show.png", "--count", "15", "--augment.mixup", "0.4")
        store("show.png", work / "show.png", 700)
        planted(work / "images")
        cls(work, "check", "images", "--run", "digits", "--to", "check.png", code=3)
        store("check.png", work / "check.png", 1200)
    total = sum(file.stat().st_size for file in PICTURES.glob("*.png"))
    assert total < LARGEST_ALL, f"{total:,} bytes in {PICTURES}"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
