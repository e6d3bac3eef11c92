"""Samples on disk: all of them or none, whatever was there before, in bounded memory."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmcgan.data.sources import ImageStore
from xmcgan.errors import UserError
from xmcgan.sampling.sample_files import SampleWriter, check_writable, part_of

RNG = np.random.default_rng(0)


def write(path: Path, num: int, fail: bool = False) -> np.ndarray:
    images = RNG.integers(0, 256, (num, 4, 4, 3), np.uint8)
    with SampleWriter(path, num, {"step": 7}) as writer:
        for start in range(0, num, 300):
            part = images[start : start + 300]
            writer.add(part, [{"caption": f"{start + i}"} for i in range(len(part))])
        if fail:
            raise KeyboardInterrupt
    return images


@pytest.mark.parametrize("name", ["samples", "samples.zip"])
def test_a_store_of_images_reads_back_what_was_written(tmp_path, name):
    images = write(tmp_path / "deep" / name, 1001)
    store = ImageStore(tmp_path / "deep" / name)
    manifest = json.loads(store.read("manifest.json"))
    assert manifest["step"] == 7
    files = [entry["file"] for entry in manifest["images"]]
    assert files == store.images(), "in the order of their names"
    assert {file.split("/")[0] for file in files} == {"000", "001"}
    for index in (0, 299, 300, 1000):
        assert manifest["images"][index]["caption"] == str(index)
        data = store.read(files[index])
        (tmp_path / "one.png").write_bytes(data)
        np.testing.assert_array_equal(Image.open(tmp_path / "one.png"), images[index])


def test_samples_replace_those_of_the_manifest_and_nothing_else(tmp_path):
    write(tmp_path / "out", 5)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    write(tmp_path / "out", 2)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"000000.png", "000001.png", "manifest.json", "mine.txt"}


@pytest.mark.parametrize("name", ["samples", "samples.zip"])
def test_an_interrupted_call_leaves_what_was_there(tmp_path, name):
    write(tmp_path / name, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, 3, fail=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_manifest_cannot_delete_files_of_other_folders(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "precious.png").write_text("")
    names = ["../precious.png", str(tmp_path / "precious.png")]
    entries = [{"file": name} for name in names]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"images": entries}))
    write(tmp_path / "out", 1)
    assert (tmp_path / "precious.png").exists()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    image = RNG.integers(0, 256, (8, 64, 64, 3), np.uint8)

    def peak(num: int) -> int:
        tracemalloc.start()
        with SampleWriter(tmp_path / f"{num}.zip", num, {}) as writer:
            for _ in range(num // 8):
                writer.add(image, [{"caption": "a"}] * 8)
        return tracemalloc.get_traced_memory()[1]

    assert peak(800) - peak(80) < 720 * 2000, "images of 12 kB each are not kept"


@pytest.mark.parametrize("name", ["file", "file/in", "folder.zip"])
def test_where_nothing_can_be_written_it_is_said_at_once(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(UserError, match=name.partition("/")[0]):
        check_writable(tmp_path / name)


def test_parts_are_folders_or_archives():
    assert part_of(Path("a/b"), "step_3") == Path("a/b/step_3")
    assert part_of(Path("a/b.zip"), "step_3") == Path("a/b_step_3.zip")
