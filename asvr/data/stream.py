"""Access to the rows of a stream by number. It reads in order, one window of rows at a time."""

import os
from collections.abc import Iterator


class Stream:
    """The first ``length`` rows of an `IterableDataset` in Arrow's format.

    If windows are asked for in rising order, each row is read once. For an earlier row the stream starts again.

    window: the number of rows in memory. source: the name for messages.
    """

    def __init__(self, rows, *, length: int, window: int, source: str):
        self.rows, self.length, self.window, self.source = rows, length, window, source
        self._tables: Iterator | None = None
        self._process, self._at, self._table = os.getpid(), -1, None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int):
        """Row ``i`` as a table. Raises ``ValueError`` if the stream ends before it."""
        if i >= self.length:
            raise IndexError(f"row {i} of {self.length}")
        number, own = divmod(i, self.window)
        if number != self._at:
            self._read(number)
        if own >= len(self._table):
            raise self._ended(number * self.window + len(self._table))
        return self._table.slice(own, 1)

    def _read(self, number: int) -> None:
        if self._tables is None or number < self._at or self._process != os.getpid():  # forks share open files
            self._tables, self._process = self.rows.iter(batch_size=self.window), os.getpid()
            self._at = -1
        while self._at < number:
            table = next(self._tables, None)
            if table is None:
                self._tables = None
                raise self._ended(self._at * self.window + len(self._table) if self._at >= 0 else 0)
            self._table, self._at = table, self._at + 1

    def _ended(self, rows: int) -> ValueError:
        return ValueError(f"{self.source}: the stream ended after {rows} rows, expected {self.length}: set num_records")

    def __getstate__(self) -> dict:
        return dict(vars(self), _tables=None, _at=-1, _table=None)


def count_rows(rows) -> int:
    """The number of rows of a stream in Arrow's format, by one pass through it."""
    return sum(len(table) for table in rows.iter(batch_size=10_000))
