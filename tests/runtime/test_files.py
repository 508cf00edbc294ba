"""Files of lines: half lines of a killed run, and a disk that takes a part of them or none."""

import json
import resource
import subprocess
from pathlib import Path

import pytest

from cls.runtime.files import Lines
from tests.harness import Mount


def test_half_a_line_of_a_killed_attempt_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    lines = Lines(path)
    assert path.read_bytes() == b"one\ntwo\n"
    lines.add(b"three\n")
    lines.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"no newline at all")
    Lines(path).close()
    assert path.read_bytes() == b""


def test_lines_that_the_disk_rejects_in_the_middle_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on file sizes takes a part of a line and rejects the rest, as a nearly full disk does."""
    path, lines = tmp_path / "lines", Lines(tmp_path / "lines")
    text = [str(i).encode() * 300_000 + b"\n" for i in range(6)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        for line in text[:5]:
            lines.add(line)
        assert path.read_bytes() == b"".join(text)[:1_000_000]  # a part of the fourth
        assert caplog.text.count("cannot be written") == 1  # said once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines.add(text[5])
    lines.close()
    assert path.read_bytes() == b"".join(text)


def test_lines_that_are_never_written_are_counted(disk: Mount, caplog: pytest.LogCaptureFixture) -> None:
    place = disk(1)
    lines = Lines(place / "lines")
    lines.add(b"whole\n")
    (place / "ballast").write_bytes(b"")
    subprocess.run(f"head -c 2M /dev/zero > {place / 'ballast'}", shell=True, capture_output=True)
    row = json.dumps({"text": "x" * 5000}).encode() + b"\n"
    for _ in range(3):
        lines.add(row)
    lines.close()
    assert "the last 3 lines could not be written" in caplog.text
    assert (place / "lines").read_bytes().startswith(b"whole\n")
    (place / "ballast").unlink()
    again = Lines(place / "lines")  # the part that went in is no line
    again.add(row)
    again.close()
    assert (place / "lines").read_bytes() == b"whole\n" + row
