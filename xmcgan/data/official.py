"""The builder that the paper's data sets share, and what their readers hand to it."""

import collections
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core import splits as splits_lib
from tqdm import tqdm

from xmcgan.data.caption_files import caption_fault
from xmcgan.data.file_index import FileRef, list_files
from xmcgan.data.image_store import IMAGE_SUFFIXES
from xmcgan.data.shards import Entry, ShardJob, ShardReport, cut_shards, write_shards
from xmcgan.data.sources import NARRATIVES
from xmcgan.errors import DataError, listed

# As many as memory of 1 GB and a disk serve.
MAX_WORKERS = 3


@dataclasses.dataclass
class OfficialData:
    """Hold what was found in an official data set, before any image is opened.

    Attributes:
        sources: where it was looked for.
        splits: entries by split, each in the order of image ids.
        counts: what was left out, by reason; for the summary.
        published: examples (images, or narratives) that the paper's data have, by split.
        narratives: each caption is an example of its own.
    """

    sources: Sequence[Path]
    splits: dict[str, list[Entry]]
    counts: dict[str, int]
    published: Mapping[str, int]
    narratives: bool = False

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all images."""
        return sum(e.image.size for e in itertools.chain(*self.splits.values()))

    def digest(self) -> str:
        """Return 16 hex digits of names, file sizes, splits and captions."""
        sha = hashlib.sha256()
        for split, entries in self.splits.items():
            for e in entries:
                sha.update(repr((split, e.name, e.image.size, e.captions, e.caption_ids)).encode())
        return sha.hexdigest()[:16]


def find_images(
    sources: Iterable[Path], wanted: Mapping[str, str], key: Callable[[str], str]
) -> tuple[dict[str, FileRef], int]:
    """Find images by id, wherever they lie; nothing is kept of files that no caption wants.

    Args:
        sources: directories and zips.
        wanted: of each id the official file name, which is preferred where several files have it.
        key: from a file name's stem to an id; empty for other files.

    Returns:
        The place of each image found, and how many images no caption wants.
    """
    found: dict[str, FileRef] = {}
    exact: set[str] = set()
    others = 0
    for path, ref in list_files(sources):
        name = path.rpartition("/")[2]
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES:
            continue
        image_id = key(stem)
        if image_id not in wanted:
            others += 1
        elif image_id not in found or (wanted[image_id] == name and image_id not in exact):
            found[image_id] = ref
            if wanted[image_id] == name:
                exact.add(image_id)
    return found, others


def check_found(
    wanted: Mapping[str, str], found: Mapping[str, Any], sources: Sequence[Path]
) -> int:
    """Return how many wanted images are absent.

    Raises:
        DataError: more than half of them: then it is the archive that is missing.
    """
    absent = [name for image_id, name in wanted.items() if image_id not in found]
    if 2 * len(absent) > len(wanted):
        where = ", ".join(map(str, sources))
        raise DataError(
            f"{len(absent):,} of the {len(wanted):,} images that the captions name are not in "
            f"{where}; is an archive missing?{listed(absent)}"
        )
    return len(absent)


class CaptionCleaner:
    """Strip captions, and count those that are dropped by reason.

    Args:
        max_chars: longer ones are dropped.
        counts: is added to.
    """

    def __init__(self, max_chars: int, counts: collections.Counter[str]):
        self._max_chars, self._counts = max_chars, counts

    def __call__(self, text: str) -> str:
        """Return a caption without white space at its ends; empty where it cannot be used."""
        text = text.strip()
        fault = caption_fault(text, self._max_chars) if text else "is empty"
        if fault:
            self._counts["empty captions dropped" if not text else "unusable captions dropped"] += 1
        return "" if fault else text


@dataclasses.dataclass(kw_only=True)
class OfficialConfig(tfds.core.BuilderConfig):
    """Hold the name of a prepared data set and what to write into it."""

    data: OfficialData
    num_workers: int = 1
    skip_damaged: bool = False


class OfficialBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """Images stored as they are, one record an image, with all captions of each."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: OfficialConfig
    show_progress = False

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        data = self.builder_config.data
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "name": text(),
                    "image_id": text(),
                    "captions": tfds.features.Sequence(text()),
                    "caption_ids": tfds.features.Sequence(text()),
                    "source_split": text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                sources=[str(source.resolve()) for source in data.sources],
                digest=data.digest(),
                left_out=data.counts,
            ),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Write all shards in parallel, where TFDS would shuffle through memory and disk."""
        del dl_manager, download_config  # downloads are done, see `downloads.py`
        data = self.builder_config.data
        jobs, owners = [], []
        for split, entries in data.splits.items():
            template = self._get_filename_template(split_name=split)
            shards = cut_shards(entries)
            for index, shard in enumerate(shards):
                path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
                jobs.append(ShardJob(os.fspath(path), shard))
                owners.append(split)
        total = sum(map(len, data.splits.values()))
        # None: a bar on a terminal, nothing in a file of logs.
        quiet = None if self.show_progress else True
        with tqdm(total=total, desc=f"writing {self.name}", unit="img", disable=quiet) as bar:
            reports = write_shards(jobs, self.builder_config.num_workers, bar.update)
        self._check_faults([fault for report in reports for fault in report.faults], total)
        self._describe(list(zip(owners, reports, strict=True)))

    def _describe(self, reports: list[tuple[str, ShardReport]]) -> None:
        """Enter into the data set's description what the shards of each split hold."""
        data = self.builder_config.data
        metadata: Any = self.info.metadata
        infos = []
        for split in data.splits:
            own = [report for owner, report in reports if owner == split]
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(report.caption_counts) for report in own],
                    num_bytes=sum(report.num_bytes for report in own),
                    filename_template=self._get_filename_template(split_name=split),
                )
            )
            if data.narratives:
                per_image = metadata.setdefault(NARRATIVES, {})
                per_image[split] = [n for report in own for n in report.caption_counts]
        self.info.set_splits(splits_lib.SplitDict(infos))

    def _check_faults(self, faults: list[str], total: int) -> None:
        if not faults:
            return
        if not self.builder_config.skip_damaged or 2 * len(faults) > total:
            raise DataError(
                f"{len(faults):,} of {total:,} images cannot be used:{listed(faults)}\n"
                "mend them, or leave them out with --skip-damaged"
            )
        metadata: Any = self.info.metadata
        metadata["left_out"]["damaged images"] = len(faults)


class Coco(OfficialBuilder, skip_registration=True):
    """COCO's captioned images (Lin et al., ECCV 2014; Chen et al., 2015)."""

    name = "coco"


class LnCoco(OfficialBuilder, skip_registration=True):
    """Localized Narratives of COCO's images (Pont-Tuset et al., ECCV 2020)."""

    name = "ln_coco"


class LnOpenImages(OfficialBuilder, skip_registration=True):
    """Localized Narratives of Open Images (Pont-Tuset et al., ECCV 2020)."""

    name = "ln_open_images"
