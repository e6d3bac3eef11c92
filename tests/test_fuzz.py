"""Readers of files that users bring: any bytes give a result or a named error, and nothing else.

Some inputs of each kind are tried by default. The slow form goes on for XMCGAN_FUZZ_SECONDS for
each, ten minutes unless set.
"""

import collections
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from data.data_samples import encode, photo
from fuzzing import damaged_bytes, damaged_json, damaged_lines, explore, explore_for
from hypothesis import strategies as st
from PIL import Image
from pretrained.torch_writer import Tensor, save_archive, save_legacy
from pyarrow import parquet
from tiny import write_bert
from weight_formats.numpy_files import read_array_tree
from weight_formats.safe_pickle import read_values
from weight_formats.torch_files import read_torch

from xmcgan import config as configs
from xmcgan.data.coco import Coco
from xmcgan.data.folder import Folder
from xmcgan.data.images import RESIZE_MODES, check_image, decode_image, resize_image
from xmcgan.data.localized_narratives import LnCoco
from xmcgan.data.readers import collect, parse_jsonl, text_rows
from xmcgan.data.sources import ImageStore
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.evaluation import soa
from xmcgan.evaluation.captions import open_manifest
from xmcgan.evaluation.results import ResultFile, best_result
from xmcgan.pretrained.bert import load_bert
from xmcgan.training.checkpoint import Checkpointer, read_record, restore_subtree
from xmcgan.training.logging import JsonLinesWriter

SECONDS = float(os.environ.get("XMCGAN_FUZZ_SECONDS", "600"))
Reader = tuple[Callable[[Any], object], st.SearchStrategy]

CAPTION_LINES = [
    {"image": "images/a.jpg", "split": "train", "captions": ["a red circle", " ☕ ", ""]},
    {"image": "images/b.jpg", "captions": ["two"]},
]
NARRATIVE = {
    "dataset_id": "mscoco_val2017", "image_id": "137576", "annotator_id": 93,
    "caption": "In this image there are two cows.", "timed_caption": [], "traces": [],
}  # fmt: skip
SCORE = {"name": "fd", "value": 1.0, "low": 0.5, "high": 2.0, "better": "lower"}
RESULT = {
    "step": 3, "weights": "ema", "recipe": "abc", "checkpoint": "def", "time": 1.0, "seconds": 2.0,
    "scores": {"fd": SCORE},
}  # fmt: skip
MANIFEST = [
    {"data": "shapes", "fingerprint": "f", "split": "validation", "seed": 0, "num": 1},
    {"example": 0, "name": "0", "image_id": "0", "caption": "a red circle"},
]
METRICS = [{"step": step, "time": 1.5, "g_loss": "NaN"} for step in (1, 2, 3)]
COCO = {
    "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "flickr_url": "x"}],
    "annotations": [{"image_id": 7, "id": 70, "caption": "A cow."}],
}


def written(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path


def json_lines(folder: Path) -> Reader:
    """Return the readers of JSON lines, one chosen for each input."""

    def metrics_log(data: bytes) -> None:
        JsonLinesWriter(written(folder / "metrics.jsonl", data), 2).close()

    def results(data: bytes) -> None:
        found = ResultFile(written(folder / "results.jsonl", data).parent).read()
        best_result(found, "fd")
        assert len({result.key for result in found}) <= len(found)

    def manifest(data: bytes) -> None:
        written(folder / "captions_shapes_validation_1_0.jsonl", data)
        identity = {key: MANIFEST[0][key] for key in ("data", "fingerprint", "split", "seed")}
        found = open_manifest(folder, [], 1, identity)
        assert " ".join(found.captions)
        assert found.digest

    readers = [
        (lambda data: list(parse_jsonl(data, "captions.jsonl")), CAPTION_LINES),
        (lambda data: _narratives(folder, data), [NARRATIVE, NARRATIVE]),
        (results, [RESULT, RESULT]),
        (manifest, MANIFEST),
        (metrics_log, METRICS),
    ]
    inputs = st.one_of(
        st.tuples(st.just(read), damaged_lines(lines)) for read, lines in readers
    )  # fmt: skip
    return (lambda value: value[0](value[1])), inputs


def _narratives(folder: Path, data: bytes) -> None:
    path = written(folder / "coco_val_localized_narratives.jsonl", data)
    LnCoco.read_texts([path], collections.Counter())


def captions(folder: Path) -> Reader:
    """Return the readers of captions: text files, COCO's file, and the tokenizer behind them."""
    source = folder / "source"
    (source / "coco").mkdir(parents=True)
    written(source / "a.jpg", photo())
    written(source / "coco" / COCO["images"][0]["file_name"], photo())
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "red", "##d"]
    tokenizer = Tokenizer(written(folder / "vocab.txt", "\n".join(vocabulary).encode()), 12)

    def tokenize(text: str) -> None:
        token_ids, word_mask = tokenizer([text])
        assert token_ids.shape == word_mask.shape == (1, 12)
        assert ((token_ids >= 0) & (token_ids < tokenizer.vocab_size)).all()
        assert word_mask[0, :2].all()

    def text_file(data: bytes) -> None:
        written(source / "a.txt", data)
        store = ImageStore(source)
        for entry in collect(text_rows(store), store, collections.Counter()):
            for caption in entry.captions:
                tokenize(caption)

    def coco_file(data: bytes) -> None:
        written(source / "coco" / "captions_train2014.json", data)
        Coco.read([source / "coco"])

    texts = [b"a red circle\n\n two \xe2\x98\x95\n", "\ufeffcr\r\nlf".encode()]
    whole = json.dumps(COCO).encode()
    damaged_coco = damaged_json(COCO).map(lambda value: json.dumps(value).encode())
    inputs = st.one_of(
        st.tuples(st.just(text_file), damaged_bytes(texts) | st.text().map(_encoded)),
        st.tuples(st.just(tokenize), st.text(st.characters(exclude_categories=["Cs"]))),
        st.tuples(st.just(coco_file), damaged_coco | damaged_bytes([whole])),
    )
    return (lambda value: value[0](value[1])), inputs


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def other_forms(folder: Path) -> Reader:
    """Return the readers of tables, tars and Parquet, with the images in them."""
    rows = [{"image": {"bytes": photo(i), "path": "x"}, "text": ["a", "b"]} for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, data in {
            "1.jpg": photo(),
            "1.txt": b"a\nb",
            "2.jpg": b"x",
            "2.txt": b"c",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    originals = {
        "a.csv": b'image,caption,split\n1.jpg,"a, b",test\n1.jpg,c,test\n',
        "a.tsv": b"file_name\ttext\n1.jpg\ta\n",
        "metadata.jsonl": b'{"file_name": "1.jpg", "text": ["a", "b"]}\n',
        "x.parquet": (folder / "x.parquet").read_bytes(),
        "x.tar": (folder / "x.tar").read_bytes(),
    }

    def read(name: str, data: bytes) -> None:
        source = folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        written(source / "1.jpg", photo())
        written(source / name, data)
        for entries in Folder.read(source).splits.values():
            for entry in entries:
                assert entry.load()["captions"]

    inputs = st.one_of(
        st.tuples(st.just(name), damaged_bytes([data])) for name, data in originals.items()
    )
    return (lambda value: read(*value)), inputs


def images(folder: Path) -> Reader:
    """Return the decoder of images; every kind of file is an original."""

    def read(data: bytes) -> None:
        image = decode_image(data, "x")
        assert image.mode == "RGB"
        check_image(data, "x")
        if image.width * image.height < 1_000_000:
            for resize in RESIZE_MODES:
                assert resize_image(image, 8, resize).shape == (8, 8, 3)

    return read, damaged_bytes(image_files()) | st.binary(max_size=200)


def image_files() -> list[bytes]:
    """Return an image in every form that data sets come in."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.quantize(16)
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb.convert("L"), "JPEG", {}), (rgb, "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {}), (palette, "PNG", {"transparency": 3}),
        (Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)), "PNG", {}),
        (palette, "GIF", {"save_all": True, "append_images": [palette]}), (rgb, "BMP", {}),
        (rgb, "WEBP", {}), (rgb, "WEBP", {"lossless": True}), (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb.convert("1"), "TIFF", {}),
    ]  # fmt: skip
    return [encode(image, kind, **options) for image, kind, options in forms]


def config_readers(folder: Path) -> Reader:
    """Return the readers of configs: files of a workdir, flags of a command line, variants."""
    stored = configs.default_config().to_dict()
    fields = sorted(configs.fields_of(configs.default_config()))

    def file(data: bytes) -> None:
        config = configs.read_config(written(folder / "config.json", data))
        configs.validate(config)
        configs.check_devices(config, 8)

    def flags(overrides: list[tuple[str, str]]) -> None:
        config = configs.default_config().lock()
        for field, value in overrides:
            configs.apply_override(config, f"{field}={value}")
        configs.validate(config)
        configs.check_devices(config, 8)
        json.dumps(configs.fingerprint(config))

    def variant(spec: str) -> None:
        configs.validate(configs.load_config(spec))

    values = st.text(max_size=12) | (st.integers() | st.floats() | st.booleans()).map(str)
    override = st.tuples(st.sampled_from(fields) | st.text(max_size=8), values)
    items = st.sampled_from(["64", "128", "256", "small", "tiny", "name=x", "year=2014",
                             "ablation=none", "ablation=word+image", "ablation="])  # fmt: skip
    names = st.sampled_from(["emoji", "shapes", "folder", "coco", "ln_coco", "ln_open_images"])
    damaged = damaged_json(stored).map(lambda value: json.dumps(value).encode())
    whole = json.dumps(stored, indent=2).encode()
    inputs = st.one_of(
        st.tuples(st.just(file), damaged | damaged_bytes([whole])),
        st.tuples(st.just(flags), st.lists(override, min_size=1, max_size=2)),
        st.tuples(
            st.just(variant),
            st.builds(
                lambda name, parts: f"{name}:{','.join(parts)}",
                names,
                st.lists(items | st.text(max_size=6), max_size=3),
            ),
        ),
    )
    return (lambda value: value[0](value[1])), inputs


def checkpoints(folder: Path) -> Reader:
    """Return the reader of checkpoints: the same values again, or an error."""
    state = {
        "g_params": {"kernel": np.linspace(-1, 1, 300, dtype=np.float32)},
        "step": np.int32(3),
    }
    with Checkpointer(folder, keep=1, fingerprint={"seed": 1}) as checkpointer:
        checkpointer.save(3, {k: jnp.asarray(v) if k == "step" else v for k, v in state.items()},
                          {"examples_seen": 24})  # fmt: skip
    files = sorted(path for path in (folder / "3").rglob("*") if path.is_file())
    originals = {path: path.read_bytes() for path in files}

    def read(value: tuple[Path, bytes]) -> None:
        path, data = value
        try:
            path.write_bytes(data)
            record = read_record(folder, 3)
            restored = restore_subtree(folder, 3, ("g_params", "step"))
        finally:
            path.write_bytes(originals[path])
        assert record.extra == {"examples_seen": 24}
        assert np.array_equal(restored["g_params"]["kernel"], state["g_params"]["kernel"])
        assert restored["step"] == 3

    inputs = st.one_of(
        st.tuples(st.just(path), damaged_bytes([data])) for path, data in originals.items()
    )
    return read, inputs


def weights(folder: Path) -> Reader:
    """Return the readers of weights in the formats that are parsed here, and of a BERT's folder."""
    state = {"a": np.ones((2, 3), np.float32), "b": {"c": np.zeros(4, np.float16)}}
    np.save(folder / "tree.npy", np.array(state, dtype=object), allow_pickle=True)
    tensors = {name: Tensor(np.arange(6, dtype=np.float32)) for name in "ab"}
    bert = write_bert(folder / "bert")
    stored = json.loads((bert / "config.json").read_text())

    def bert_config(data: bytes) -> None:
        written(bert / "config.json", data)
        load_bert(bert)

    def bert_tensors(data: bytes) -> None:
        written(bert / "config.json", json.dumps(stored).encode())
        written(bert / "model.safetensors", data)
        load_bert(bert)

    savers = (save_legacy, save_archive)
    files = {
        read_torch: [save(folder / "a.pth", tensors).read_bytes() for save in savers],
        read_array_tree: [(folder / "tree.npy").read_bytes()],
    }
    choices = [
        st.tuples(st.just(lambda data, read=read: read(written(folder / "x", data))),
                  damaged_bytes(originals))
        for read, originals in files.items()
    ]  # fmt: skip
    configs_ = damaged_json(stored).map(lambda value: json.dumps(value).encode())
    whole = json.dumps(stored).encode()
    choices += [
        st.tuples(st.just(bert_config), configs_ | damaged_bytes([whole])),
        st.tuples(
            st.just(bert_tensors), damaged_bytes([(bert / "model.safetensors").read_bytes()])
        ),
    ]
    return (lambda value: value[0](value[1])), st.one_of(choices)


def object_accuracy(folder: Path) -> Reader:
    """Return the readers of semantic object accuracy: captions, and what was detected."""
    entries = [{"caption": " a dog\n", "id": 3, "image_id": 4, "idx": [0, 1]}]
    found = {"0.png": [["dog"], [16], [[0.5] * 4]], "1.png": [[], [], []]}
    plain = {"label_16_dog": {"0.png": ["dog", 3], "1.png": []}}

    def captions_of(suffix: str, data: bytes) -> None:
        path = written(folder / f"label_16_dog{suffix}", data)
        try:
            plan = soa.plan_samples(soa.read_captions(folder, _values))
            json.dumps(plan, ensure_ascii=False).encode()
        finally:
            path.unlink()

    def detections(suffix: str, data: bytes) -> None:
        path = written(folder / f"detected_label_16_dog{suffix}", data)
        soa.read_detections(path, _values)

    pickles = {read: [pickle.dumps(value, protocol) for protocol in (0, 2, 4)]
               for read, value in ((captions_of, entries), (detections, found))}  # fmt: skip
    choices = [
        st.tuples(st.just(read), st.just(".pkl"), damaged_bytes(originals))
        for read, originals in pickles.items()
    ]
    for read, value in ((captions_of, entries), (detections, plain)):
        damaged = damaged_json(value).map(lambda changed: json.dumps(changed).encode())
        whole = damaged_bytes([json.dumps(value).encode()])
        choices.append(st.tuples(st.just(read), st.just(".json"), damaged | whole))
    return (lambda value: value[0](*value[1:])), st.one_of(choices)


def _values(path: Path) -> Any:
    return read_values(path) if path.suffix == ".pkl" else soa.read_values(path)


READERS = {
    "json_lines": (json_lines, 150),
    "captions": (captions, 200),
    "other_forms": (other_forms, 300),
    "images": (images, 250),
    "configs": (config_readers, 250),
    "checkpoints": (checkpoints, 50),
    "weights": (weights, 200),
    "object_accuracy": (object_accuracy, 300),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_returns_or_raises_a_user_error(kind, tmp_path):
    make, examples = READERS[kind]
    read, inputs = make(tmp_path)
    explore(read, inputs, examples=examples)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_does_so_for_minutes(kind, tmp_path):
    read, inputs = READERS[kind][0](tmp_path)
    assert explore_for(SECONDS, read, inputs) > 0
