"""Training on a data set of which a few records were damaged, where its owner asks for that."""

import logging
from typing import Any

from xmcgan.data.sources import Example, Source
from xmcgan.errors import DataError


class SkippingSource:
    """Give the next readable example in the place of a damaged one.

    What stands in for a record is a function of its index, so a resumed run sees the same examples.
    Evaluation never reads through this: a score of fewer images is another score.

    Args:
        source: a split.
        most: how many records may be damaged; each process that reads counts those it meets.
    """

    def __init__(self, source: Source, most: int) -> None:
        # The last record is kept: where all are damaged, nothing can stand in.
        self._source, self._most = source, min(most, len(source) - 1)
        self._damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        while True:
            try:
                return self._source[index]
            except DataError as error:
                self._count(index, error)
                index = (index + 1) % len(self)

    def _count(self, index: int, error: DataError) -> None:
        if index in self._damaged:
            return
        self._damaged.add(index)
        if len(self._damaged) > self._most:
            raise DataError(
                f"{error}\nMore records are damaged than data.max_damaged_records = {self._most} "
                "allows."
            ) from error
        logging.warning(
            "damaged record %d of at most %d left out: %s", len(self._damaged), self._most, error
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_most": self._most, "_damaged": set()}
