"""The measurements as tables on standard error."""

from typing import Any

from rich.table import Table

from cls.runtime.console import console

TITLES = {
    "decode": "decode floor",
    "read": "reading",
    "in_process": "ours in a worker",
    "end_to_end": "ours end to end",
}


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def table(document: dict[str, Any]) -> None:
    machine, images, means = document["machine"], document["images"], document["geometric_means"]
    say(f"{machine['cores']:g} cores, {machine['processor']}, load average {machine['load_average']:.1f} before")
    say(", ".join(f"{name} {version}" for name, version in document["versions"].items()))
    formats = ", ".join(f"{count} {name}" for name, count in images["formats"].items())
    say(
        f"{images['used']} images ({images['different']} different, {images['corrupt_left_out']} corrupt left out): "
        f"{formats}; {_range(images['kilobytes'], '.0f')} kB, {_range(images['megapixels'], '.2f')} megapixels"
    )
    rows = document["pipelines"]
    times = _table("CPU us per image", list(TITLES.values()))
    ratios = _table("ratio", [" / ".join(TITLES[part] for part in name.split("/")) for name in means])
    for row in rows:
        times.add_row(row["recipe"], *(_range(row["us_per_image"][name], ".0f") for name in TITLES))
        ratios.add_row(row["recipe"], *(_range(row["ratios"][name], ".2f") for name in means))
    if len(rows) > 1:
        ratios.add_row("geometric mean", *(f"{value:.2f}" for value in means.values()))
    console.print("", times, "", ratios, "")
    for name, text in document["measured"].items():
        say(f"{TITLES[name]}: {text}")
    _loop(document["loop"])
    _settings(document["settings"])
    console.print(document["advice"]["text"], style="bold", markup=False, highlight=False)


def _table(first: str, titles: list[str]) -> Table:
    found = Table(first, box=None)
    for title in titles:
        found.add_column(title, justify="right")
    return found


def _loop(loop: dict[str, Any]) -> None:
    if "left_out" in loop:
        say(f"training loop: left out, {loop['left_out']}")
        return
    rates = loop["images_per_second"]
    say(
        f"training loop on {loop['device']} ({loop['precision']}, batch {loop['batch']} in micro-batches of "
        f"{loop['micro_batch']}, {loop['workers']} workers, {loop['steps']} steps each): "
        f"{_range(rates['with_data'], '.1f')} images/s with data, {_range(rates['resident'], '.1f')} on a resident "
        f"micro-batch; efficiency {_range(loop['efficiency'], '.3f')}, share of the time spent waiting for data "
        f"{_range(loop['waiting_for_data'], '.3f')}; normalising on the device "
        f"{_range(loop['prepare_us_per_image'], '.0f')} us per image"
    )


def _settings(found: dict[str, Any]) -> None:
    if "left_out" in found:
        say(f"settings: left out, {found['left_out']}")
        return
    rows = found["rows"]
    shown = _table("step on a resident micro-batch", ["ms", "images/s", "against the first", "peak GiB"])
    failed: list[str] = []
    for row in rows:
        names = f"{row['reduce']}, {'channels_last' if row['channels_last'] else 'channels_first'}"
        names += ("" if row["deterministic"] else ", free kernels") + (", compiled" if row["compile"] else "")
        if "failed" in row:
            shown.add_row(names, "failed")
            failed.append(f"{names}: {row['failed']}")
            continue
        ratio = rows[0]["step_seconds"] / row["step_seconds"] if "step_seconds" in rows[0] else float("nan")
        peak = f"{row['peak_gib']:.2f}" if "peak_gib" in row else "-"
        figures = (f"{1e3 * row['step_seconds']:.1f}", f"{row['images_per_second']:.1f}", f"{ratio:.2f}", peak)
        shown.add_row(names, *figures)
    console.print("", shown, "")
    for text in failed:
        say(text)
    say(found["text"])


def _range(found: dict[str, float], form: str) -> str:
    low, middle, high = (format(found[name], form) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}..{high})"
