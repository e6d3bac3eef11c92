"""Prepared data sets: whether their records can be read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmcgan.studies.doctor.findings import Finding, examine

_RECORDS = 20  # of each split: the first, the last, and some between


def examine_data(data_dir: Path) -> Iterator[Finding]:
    """Look at every data set that is prepared in a folder.

    Args:
        data_dir: root of all prepared data sets.
    """
    yield from examine("data", lambda: _look_at_all(data_dir))


def _look_at_all(data_dir: Path) -> Iterator[Finding]:
    from xmcgan.data import DATA_SETS

    names = [
        f"{builder}/{folder.name}"
        for builder in DATA_SETS
        for folder in sorted((data_dir / builder).glob("[!.]*/"))
    ]
    if not names:
        text = f"nothing is prepared in {data_dir}; `emoji` and `shapes` are, on first use"
        yield Finding("data", text)
    for name in names:
        yield from examine("data", lambda name=name: examine_data_set(name, data_dir))


def examine_data_set(name: str, data_dir: Path, **fields: Any) -> Iterator[Finding]:
    """Read some records of each split, with their images.

    Args:
        name: of the data set, such as "folder/mine".
        data_dir: root of all prepared data sets.
        fields: of a user's own data set.

    Raises:
        DataError: the data set, a record or an image cannot be read; it is named.
    """
    from xmcgan.data import DataSet
    from xmcgan.data.images import decode_image

    data_set = DataSet(name, data_dir, **fields)
    for split in data_set.splits():
        source = data_set.load(split)
        last = len(source) - 1
        chosen = sorted({last * part // (_RECORDS - 1) for part in range(_RECORDS)})
        for index in chosen:
            example = source[index]
            decode_image(example.image, f"{example.name} (record {index} of {split!r})")
        text = f"{name} {split!r}: {len(source):,} examples, read {len(chosen)} of them"
        yield Finding("data", text)
