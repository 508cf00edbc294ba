"""Tables are distinguished by their footers, whose length is in the file's last eight bytes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cls.data.footers import footers


def test_tables_of_equal_size_and_equal_last_bytes_are_distinguished(tmp_path: Path) -> None:
    """Statistics of the columns stand in the footer: another value of the same length changes it alone."""
    for name, values in (("a", ["ab", "cd"]), ("b", ["ab", "ce"])):
        pq.write_table(pa.table({"label": values}), tmp_path / f"{name}.parquet", compression="none")
    first, second = (tmp_path / f"{name}.parquet" for name in "ab")
    assert first.stat().st_size == second.stat().st_size
    assert first.read_bytes()[-8:] == second.read_bytes()[-8:] != b""
    one, other = footers([str(first), str(second)])
    assert one["bytes"] == other["bytes"] and one["footer"] != other["footer"]


def test_of_a_large_table_the_whole_footer_counts(tmp_path: Path) -> None:
    """Longer than the last kilobytes: many columns; the difference stands at the footer's beginning."""
    paths = []
    for name in ("first", "secnd"):
        table = pa.table({f"{name if n == 0 else 'column'}{n}": [0] for n in range(2000)})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="none")
        paths.append(str(tmp_path / f"{name}.parquet"))
    one, other = footers(paths)
    assert one["footer"] != other["footer"]
