"""Captions in others' forms: the records of `captions.jsonl`, in little memory, faults named."""

import csv
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from data_samples import photo, write_folder
from pyarrow import parquet

from xmcgan.config import apply_override, default_config
from xmcgan.data import DataSet
from xmcgan.data.folder import Folder
from xmcgan.data.readers import Columns
from xmcgan.errors import ConfigError, DataError

SPLITS = ["train", "train", "train", "validation"]
# As `write_folder` makes them.
CAPTIONS = [[f"a photo of {i}", f"number {i}"] for i in range(4)]
RECORDS = [(photo(i), tuple(CAPTIONS[i]), split) for i, split in enumerate(SPLITS)]


# Writers of the same four images in every form; each returns the source and flags of the command.


def images_in(root: Path, *, by_split: bool = False) -> list[str]:
    paths = [f"{split if by_split else 'images'}/{i}.jpg" for i, split in enumerate(SPLITS)]
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(photo(i))
    return paths


def jsonl(root: Path) -> tuple[Path, list[str]]:
    write_folder(root)
    file = root / "captions.jsonl"
    file.write_text(file.read_text().replace('"dev"', '"validation"'))
    return root, []


def metadata(root: Path, field: str = "text") -> tuple[Path, list[str]]:
    images_in(root, by_split=True)
    for split in dict.fromkeys(SPLITS):
        rows = [
            {"file_name": f"{i}.jpg", field: CAPTIONS[i], "width": 24}
            for i in range(4)
            if SPLITS[i] == split
        ]
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root, []


def metadata_other_field(root: Path) -> tuple[Path, list[str]]:
    return metadata(root, "prompt")[0], ["--caption-column", "prompt"]


def table(root: Path, suffix: str = ".csv", header=("image", "caption", "split")) -> Path:
    paths = images_in(root)
    with (root / f"photos{suffix}").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerow(["id", *header])
        for i, path in enumerate(paths):
            writer.writerows([i, path, caption, SPLITS[i]] for caption in CAPTIONS[i])
    return root


def comma(root: Path) -> tuple[Path, list[str]]:
    return table(root), []


def tab(root: Path) -> tuple[Path, list[str]]:
    return table(root, ".tsv", ("filename", "text", "split")), []


def named_columns(root: Path) -> tuple[Path, list[str]]:
    flags = ["--image-column", "path", "--caption-column", "alt", "--split-column", "part"]
    return table(root, ".csv", ("path", "alt", "part")), flags


def table_elsewhere(root: Path) -> tuple[Path, list[str]]:
    table(root).joinpath("photos.csv").rename(root.parent / "elsewhere.csv")
    return root, ["--captions", str(root.parent / "elsewhere.csv")]


def metadata_csv(root: Path) -> tuple[Path, list[str]]:
    table(root, ".csv", ("file_name", "text", "split")).joinpath("photos.csv").rename(
        root / "metadata.csv"
    )
    return root, []


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tars(root: Path) -> tuple[Path, list[str]]:
    for split, shards in (("train", [(0, 1), (2,)]), ("validation", [(3,)])):
        for shard, keys in enumerate(shards):
            members = {}
            for i in keys:
                members[f"{i:09d}.jpg"] = photo(i)
                members[f"{i:09d}.json"] = json.dumps({"caption": "?", "key": i}).encode()
                members[f"{i:09d}.txt"] = "\n".join(CAPTIONS[i]).encode()
            write_tar(root / split / f"{shard:05d}.tar", members)
        parquet.write_table(pa.table({"url": ["x"]}), root / split / "00000.parquet")
    return root, []


def hugging_face_parquet(root: Path) -> tuple[Path, list[str]]:
    root.mkdir()
    for split in dict.fromkeys(SPLITS):
        rows = [
            {"image": {"bytes": photo(i), "path": f"{i}.jpg"}, "text": CAPTIONS[i]}
            for i in range(4)
            if SPLITS[i] == split
        ]
        parquet.write_table(pa.Table.from_pylist(rows), root / f"{split}-00000-of-00001.parquet")
    return root, []


def one_parquet(root: Path) -> tuple[Path, list[str]]:
    rows = [{"jpg": photo(i), "caption": CAPTIONS[i], "split": SPLITS[i]} for i in (3, 0, 1, 2)]
    root.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), root / "all.parquet", row_group_size=2)
    return root / "all.parquet", ["--image-column", "jpg"]


FORMS = [
    jsonl, metadata, metadata_other_field, metadata_csv, comma, tab, named_columns, table_elsewhere,
    tars, hugging_face_parquet, one_parquet,
]  # fmt: skip


def stored(data_set: DataSet) -> list[tuple[bytes, tuple[str, ...], str]]:
    """Return all records, sorted by their captions."""
    loaded = {split: data_set.load(split) for split in data_set.splits()}
    examples = [(s[i], split) for split, s in loaded.items() for i in range(len(s))]
    return sorted(
        ((e.image, tuple(e.captions), split) for e, split in examples), key=lambda row: row[1]
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_records_of_captions_jsonl(form, run, tmp_path):
    source, flags = form(tmp_path / "source")
    command = ["folder", "--source", source, "--name", "x", "--data-dir", tmp_path / "data"]
    status, output, errors = run("scripts/prepare_data.py", *command, *flags)
    assert (status, errors) == (0, "")
    assert "left out" not in output
    assert stored(DataSet("folder/x", tmp_path / "data")) == RECORDS


def test_a_table_is_the_same_data_set_as_captions_jsonl(tmp_path):
    expected = Folder.read(jsonl(tmp_path / "a")[0])
    found = Folder.read(comma(tmp_path / "b")[0])
    assert found.recipe == expected.recipe
    assert found.splits.keys() == expected.splits.keys()


def test_text_files_come_before_tables(tmp_path):
    root = table(tmp_path / "source")
    (root / "images" / "0.txt").write_text("a text")
    (entry,) = Folder.read(root).splits["train"]
    assert entry.captions == ("a text",)


def test_split_of_a_table_is_its_name(tmp_path):
    root = tmp_path / "source"
    images_in(root)
    (root / "train.csv").write_text("image,caption\nimages/0.jpg,a\nimages/1.jpg,b\n")
    (root / "test.csv").write_text("image,caption\nimages/2.jpg,c\n")
    splits = Folder.read(root).splits
    assert {split: len(entries) for split, entries in splits.items()} == {"train": 2, "test": 1}


def test_empty_captions_beside_others_are_counted(tmp_path):
    root = tmp_path / "source"
    images_in(root)
    (root / "a.csv").write_text('image,caption\nimages/0.jpg,""\nimages/0.jpg,"a, b"\n')
    contents = Folder.read(root)
    assert contents.splits["train"][0].captions == ("a, b",)
    assert contents.left_out == {"images without captions": 3, "empty captions dropped": 1}


# Faults.


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["a,b", "images/0.jpg,x"], "line 2: no column 'image' or .*it has 'a', 'b'.*image-column"),
        (["image,b", "images/0.jpg,x"], "line 2: no column 'caption'.*'image', 'b'.*caption-col"),
        (["image,text", "images/0.jpg,x", "images/9.jpg,x"], "line 3: images/9.jpg"),
        (["image,text", "../x.jpg,x"], "line 2: ../x.jpg"),
        (["image,text", "images/0.jpg,x", "images/1.jpg,"], "line 3: every caption is empty"),
        (["image,text", "", "images/0.jpg, "], "line 3: every caption is empty"),
        (["image,text", '"images/0.jpg","a\nb"', "images/1.jpg"], "line 4: 1 fields.*has 2"),
        (["image,text", "images/0.jpg,a,b"], "line 2: 3 fields; the header has 2"),
        (["image,text", f"images/0.jpg,{'x' * 2001}"], "line 2: a caption has 2,001"),
        (["image,text", 'images/0.jpg,"a"b'], "line 2: .*expected after"),
        (["image,text", f"images/0.jpg,{'x' * 200_000}"], "line 2: field larger"),
        (["image,text", ",x"], "line 2: the image must be a path"),
        (["image,text,split", "images/0.jpg,x,all"], "line 2: .split. is 'all'"),
        (["image,text,split", "images/0.jpg,x,a", "images/0.jpg,y,b"], "line 3: .*split 'a' alr"),
        (["image,text", "images/0.jpg,\udcff"], "line 2: not UTF-8"),
    ],
)
def test_a_bad_row_of_a_table_is_named_with_file_and_line(tmp_path, lines, fault):
    root = tmp_path / "source"
    images_in(root)
    (root / "photos.csv").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"(?s)(^|  )photos.csv, .*{fault}"):
        Folder.read(root)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"file_name": ', "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"file_name": "0.jpg"}', "no column 'caption'.*it has 'file_name'"),
        ('{"file_name": "0.jpg", "text": 3}', "must be a string or a list"),
        ('{"file_name": "0.jpg", "text": [" ", null]}', "every caption is empty"),
        ('{"file_name": 3, "text": "a"}', "must be a path"),
        ('{"file_name": "9.jpg", "text": "a"}', "9.jpg"),
    ],
)
def test_a_bad_line_of_metadata_is_named(tmp_path, line, fault):
    metadata(tmp_path)
    (tmp_path / "train" / "metadata.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=rf"(?s)train/metadata\.jsonl, line 2\b.*{fault}"):
        Folder.read(tmp_path)


def test_two_captions_for_one_key_of_a_tar_are_refused(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"1.jpg": photo(), "1.txt": b"a"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(DataError, match=r"0\.tar: two captions for one key: member '1\.txt'"):
        Folder.read(tmp_path)


def test_an_empty_caption_and_a_bad_image_of_a_tar_are_named_by_member(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"1.jpg": photo(), "1.txt": b" \n"})
    with pytest.raises(DataError, match=r"0\.tar/1\.txt: every caption is empty"):
        Folder.read(path)
    write_tar(path, {"1.jpg": photo(), "1.txt": b"a", "2.jpg": photo()[:-100], "2.txt": b"b"})
    with pytest.raises(DataError, match=r"1 of 2 images(.|\n)*0\.tar/2\.jpg"):
        Folder.write(Folder.read(path), tmp_path / "data", "x")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg"])
def test_members_of_a_tar_that_point_outside_are_refused(tmp_path, name):
    write_tar(tmp_path / "0.tar", {name: photo()})
    with pytest.raises(DataError, match="points outside"):
        Folder.read(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 700, 1024, 1600, 2000, 2048])
def test_a_tar_that_was_cut_off_is_named(tmp_path, keep):
    path = write_tar(tmp_path / "0.tar", {"1.jpg": b"x" * 600, "1.txt": b"a"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"0\.tar is not a readable tar"):
        Folder.read(tmp_path)


def test_a_tar_with_a_damaged_header_or_compression_is_named(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"1.jpg": b"x" * 600, "1.txt": b"a"})
    data = bytearray(path.read_bytes())
    data[512 * 3 + 20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"0\.tar is not a readable tar.*byte 1,536"):
        Folder.read(tmp_path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(DataError, match="compressed"):
        Folder.read(tmp_path)


def test_an_archive_in_a_zip_is_refused(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.jpg": photo(), "1.txt": b"a"})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "0.tar", "0.tar")
    with pytest.raises(DataError, match=r"0\.tar is inside a zip; unpack"):
        Folder.read(tmp_path / "a.zip")


def write_rows(path: Path, rows: list[dict]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ({"image": photo(), "x": "a"}, r"no column 'caption' or .*it has 'image', 'x'"),
        ({"x": photo(), "text": "a"}, r"no column 'image' or .*it has 'x', 'text'"),
        ({"image": "a.jpg", "text": "a"}, r"column 'image' has string, not the bytes"),
        ({"image": {"path": "a"}, "text": "a"}, r"column 'image' has struct.*not the bytes"),
        ({"image": photo(), "text": 3}, r"row 0: the caption must be a string"),
        ({"image": photo(), "text": ["", None]}, r"row 0: every caption is empty"),
        ({"image": photo(), "text": "a", "split": 1}, r"row 0: .split. is 1"),
    ],
)
def test_a_bad_parquet_file_is_named(tmp_path, bad, fault):
    with pytest.raises(DataError, match=rf"a\.parquet.*{fault}"):
        Folder.read(write_rows(tmp_path / "a.parquet", [bad]))


def test_a_bad_image_of_parquet_is_named_by_row(tmp_path):
    images = [photo(), None, photo()[:-100], photo(), b""]
    rows = [{"image": {"bytes": image, "path": None}, "text": "a"} for image in images]
    contents = Folder.read(write_rows(tmp_path / "a.parquet", rows))
    with pytest.raises(DataError, match=r"3 of 5 images") as caught:
        Folder.write(contents, tmp_path / "data", "x")
    message = str(caught.value)
    assert f"row 1 of {tmp_path}/a.parquet cannot be read: it has no bytes" in message
    assert "a.parquet/2 " in message
    assert "row 4 of" in message


def test_damaged_parquet_is_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [{"image": photo(), "text": "a"}] * 100)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        Folder.read(path)


# Memory.

MEASURE = """
import re, sys
from pathlib import Path
from xmcgan.data.folder import Folder

def prepare(source, name):
    Folder.write(Folder.read(Path(source)), Path(sys.argv[1]), name, num_workers=1)
    # Not of getrusage, which begins with the parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

few, many = prepare(sys.argv[2], "few"), prepare(sys.argv[3], "many")
print(many - few)
"""
SIZE = 96


def noise(i: int) -> bytes:
    """Return a bitmap of 27 kB, which a reader cannot keep small."""
    num_bytes = 3 * SIZE * SIZE
    header = struct.pack("<2sIIIIiiHH24x", b"BM", 54 + num_bytes, 0, 54, 40, SIZE, SIZE, 1, 24)
    return header + os.urandom(num_bytes)


def many_files(root: Path, num: int) -> Path:
    root.mkdir()
    for i in range(num):
        (root / f"{i}.bmp").write_bytes(noise(i))
    return root


def many_metadata(root: Path, num: int) -> Path:
    lines = [json.dumps({"file_name": f"{i}.bmp", "text": f"number {i}"}) for i in range(num)]
    many_files(root, num).joinpath("metadata.jsonl").write_text("\n".join(lines))
    return root


def many_in_csv(root: Path, num: int) -> Path:
    lines = ["image,caption", *(f"{i}.bmp,number {i}" for i in range(num))]
    many_files(root, num).joinpath("a.csv").write_text("\n".join(lines))
    return root


def many_in_tars(root: Path, num: int) -> Path:
    for shard in range(0, num, 500):
        members = {}
        for i in range(shard, shard + 500):
            members |= {f"{i}.bmp": noise(i), f"{i}.txt": b"number"}
        write_tar(root / f"{shard}.tar", members)
    return root


def many_in_parquet(root: Path, num: int) -> Path:
    root.mkdir()
    schema = pa.schema({"image": pa.binary(), "text": pa.string()})
    rows = [{"image": noise(i), "text": f"number {i}"} for i in range(num)]
    # One group of rows: the worst case.
    parquet.write_table(pa.Table.from_pylist(rows, schema), root / "a.parquet")
    return root


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize("form", [many_metadata, many_in_csv, many_in_tars, many_in_parquet])
def test_memory_does_not_grow_with_the_number_of_images(form, tmp_path):
    sources = [form(tmp_path / str(num), num) for num in (3000, 8000)]
    command = [sys.executable, "-c", MEASURE, tmp_path / "data", *sources]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    print("MiB", run.stdout)
    assert float(run.stdout) < 88  # MiB; the images that are more have 132
    assert len(DataSet("folder/many", tmp_path / "data").load("train")) == 8000


# TFDS.


class MyCaptions(tfds.core.GeneratorBasedBuilder):
    """A small data set with captions in several forms."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]  # noqa: RUF012
    pkg_dir_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(3)}

    def _generate_examples(self, num):
        for i in range(num):
            texts = [{"text": f"first {i}", "id": i}, {"text": f"second {i}", "id": -i}]
            image = io.BytesIO(photo(i))
            yield i, {"image": image, "caption": f"photo {i}", "captions": texts, "label": i}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    builder = MyCaptions(config="small", data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return data_dir


def test_a_tfds_data_set_is_read_in_place(tfds_dir):
    data_set = DataSet("tfds:my_captions/small", tfds_dir)
    data_set.prepare()
    assert data_set.splits() == {"train": 12, "test": 3}
    assert data_set.held_out() == "test"
    expected = sorted((photo(i), (f"photo {i}",), "test") for i in range(3))
    assert sorted(row for row in stored(data_set) if row[2] == "test") == expected
    assert data_set.load("train")[3].name == "train-3"


def test_a_slice_of_tfds_is_a_split(tfds_dir):
    data_set = DataSet("tfds:my_captions/small", tfds_dir)
    whole, first, rest = (data_set.load(s) for s in ("train", "train[:5]", "train[5:]+test"))
    assert (len(first), len(rest), len(data_set.load("train[:50%]"))) == (5, 10, 6)
    assert [first[i].captions for i in range(5)] == [whole[i].captions for i in range(5)]
    assert rest[0].captions == whole[5].captions
    assert pickle.loads(pickle.dumps(first))[4].image == first[4].image


def test_keys_of_tfds_are_fields_of_the_config(tfds_dir):
    config = default_config()
    for override in ("name=tfds:my_captions/small", "fields.caption_key=captions/text"):
        apply_override(config, f"data.{override}")
    data_set = DataSet(config.data.name, tfds_dir, **config.data.fields)
    data_set.prepare()
    first, second = data_set.load("test")[0].captions
    assert first.replace("first", "second") == second


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"caption_key": "text"}, "feature 'text'; there are caption, captions/text, image"),
        ({"caption_key": "label"}, "feature 'label'; there are"),
        ({"image_key": "picture"}, r"'picture'.*config\.data\.fields\.image_key"),
    ],
)
def test_a_wrong_key_of_tfds_names_those_that_are_there(tfds_dir, fields, fault):
    with pytest.raises(DataError, match=rf"record 2 of split 'test'.*{fault}"):
        DataSet("tfds:my_captions/small", tfds_dir, **fields).load("test")[2]


@pytest.mark.parametrize("split", ["tets", "train[:x]", "train[5"])
def test_a_wrong_split_of_tfds_is_named(tfds_dir, split):
    with pytest.raises(DataError, match=r"split"):
        DataSet("tfds:my_captions/small", tfds_dir).load(split)


def test_a_tfds_data_set_that_is_not_there_names_the_command(tfds_dir):
    with pytest.raises(DataError, match=r"tfds build none --file_format=array_record"):
        DataSet("tfds:none", tfds_dir).prepare()
    with pytest.raises(ConfigError, match="caption_kye"):
        DataSet("tfds:my_captions/small", tfds_dir, caption_kye="x").load("train")


def test_tfds_files_of_another_format_are_refused(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "my_captions", tmp_path / "my_captions")
    version = tmp_path / "my_captions" / "small" / "1.0.0"
    for file in version.glob("*.array_record*"):
        file.rename(version / file.name.replace("array_record", "tfrecord"))
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="other files than ArrayRecord"):
        DataSet("tfds:my_captions/small", tmp_path).load("train")


def test_columns_that_are_asked_for_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"no column 'fold'; it has 'id', 'image'"):
        Folder.read(table(tmp_path), None, Columns(split="fold"))
