"""Semantic object accuracy: images as the authors' script reads them, scores as it gives."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from weight_formats.safe_pickle import read_values

from xmcgan.errors import DataError, UserError
from xmcgan.evaluation import soa

SOA = "scripts/soa.py"
BICYCLE, DOG, PERSON = "label_01_bicycle", "label_16_dog", "label_00_person"
CAPTIONS = {
    PERSON: ["a red circle", "a blue star"],
    BICYCLE: ["the green square \n", "a star"],
    DOG: ["a blue circle"],
}


def write_captions(folder: Path, captions=CAPTIONS, protocol: int = 2) -> Path:
    """Write caption files as the authors have them."""
    folder.mkdir()
    for label, texts in captions.items():
        entries = [
            {"idx": [i, 0], "image_id": 7, "id": 70 + i, "caption": text}
            for i, text in enumerate(texts)
        ]
        (folder / f"{label}.pkl").write_bytes(pickle.dumps(entries, protocol))
    return folder


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """Write folders of images that no caption is known of."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4)).save(folder / label / f"{i}.png")
    return folder


def found_by_yolo(*classes: int) -> list:
    """Return the entry of an image in the authors' results."""
    box = [np.asarray(np.float32(0.25)) for _ in range(4)]  # as of a PyTorch scalar
    return [[soa.CLASSES[c] for c in classes], [*classes], [box for _ in classes]]


def write_detections(folder: Path, detected: dict[str, list[list[int]]], protocol: int = 3) -> Path:
    """Write the classes that are detected in each image, as the authors' script does."""
    folder.mkdir()
    for label, images in detected.items():
        result = {f"{i}.png": found_by_yolo(*classes) for i, classes in enumerate(images)}
        (folder / f"detected_{label}.pkl").write_bytes(pickle.dumps(result, protocol))
    (folder / "result_file.pkl").write_bytes(pickle.dumps({1: {"accuracy": 0.5}}))
    return folder


# By hand: bicycle 1 of 2, dog 1 of 4, person 3 of 4.
DETECTED = {
    BICYCLE: [[1, 1, 0], [16]],
    DOG: [[16], [], [17], [1]],
    PERSON: [[0], [0, 16], [1, 0], []],
}
COUNTS = {label: len(images) for label, images in DETECTED.items()}
SOA_C, SOA_I = (1 / 2 + 1 / 4 + 3 / 4) / 3, (1 + 1 + 3) / (2 + 4 + 4)


@pytest.fixture
def samples(tmp_path) -> Path:
    return write_images(tmp_path / "images", COUNTS)


def generate(run, tiny_workdir, captions: Path, out: Path, *flags: object):
    return run(SOA, "generate", "--workdir", tiny_workdir, "--captions", captions, "--out", out,
               *flags)  # fmt: skip


def score(run, samples: Path, detections: Path, *flags: object):
    return run(SOA, "score", "--samples", samples, "--detections", detections, *flags)


def pixels(out: Path, label: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(p)) for p in sorted((out / "images" / label).glob("*.png"))]


# Images.


def test_each_caption_gets_three_images_in_the_folder_of_its_label(run, tiny_workdir, tmp_path):
    captions, out = write_captions(tmp_path / "captions"), tmp_path / "out"
    status, output, _ = generate(run, tiny_workdir, captions, out, "--seed", 3)
    assert status == 0
    assert "11 images of 3 labels" in output
    names = {folder.name: sorted(os.listdir(folder)) for folder in (out / "images").iterdir()}
    three = [f"00000_{k}.png" for k in range(3)]
    assert names[DOG] == three
    assert names[BICYCLE] == [*three, *(f"00001_{k}.png" for k in range(3))]
    assert names[PERSON] == ["00000_0.png", "00001_0.png"]  # one each, as the authors ask
    assert len({image.tobytes() for label in CAPTIONS for image in pixels(out, label)}) == 11
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["step"], manifest["seed"], manifest["images_per_caption"]) == (6, 3, 3)
    first = {"caption": "the green square", "id": 70, "image_id": 7, "images": three}
    assert manifest["labels"][BICYCLE][0] == first


def test_images_of_a_label_do_not_depend_on_the_other_labels(run, tiny_workdir, tmp_path):
    alone = {DOG: CAPTIONS[DOG]}
    for name, captions in {"all": CAPTIONS, "one": alone}.items():
        source = write_captions(tmp_path / f"{name}_captions", captions)
        assert generate(run, tiny_workdir, source, tmp_path / name)[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "all", DOG), pixels(tmp_path / "one", DOG))


def test_the_same_command_continues_and_another_is_refused(run, tiny_workdir, tmp_path):
    captions, out = write_captions(tmp_path / "captions"), tmp_path / "out"
    assert generate(run, tiny_workdir, captions, out)[0] == 0
    before = pixels(out, BICYCLE)
    lost, kept = out / "images" / BICYCLE / "00001_2.png", out / "images" / DOG / "00000_0.png"
    lost.unlink()
    time = kept.stat().st_mtime_ns
    assert generate(run, tiny_workdir, captions, out)[0] == 0
    np.testing.assert_array_equal(pixels(out, BICYCLE), before)
    assert kept.stat().st_mtime_ns == time
    status, _, errors = generate(run, tiny_workdir, captions, out, "--seed", 1)
    assert status == 2
    assert "seed: 0 -> 1" in errors


def test_json_captions_give_the_same_plan_as_pickles(tmp_path):
    pickled = soa.read_captions(write_captions(tmp_path / "a"), read_values)
    (tmp_path / "b").mkdir()
    for label, texts in CAPTIONS.items():
        entries = [{"caption": t, "id": 70 + i, "image_id": 7} for i, t in enumerate(texts)]
        (tmp_path / "b" / f"{label}.json").write_text(json.dumps(entries))
    assert soa.plan_samples(soa.read_captions(tmp_path / "b")) == soa.plan_samples(pickled)


def test_30000_random_persons_get_one_image_each():
    captions = [{"caption": f"person {i}"} for i in range(30_010)]
    plan = soa.plan_samples({PERSON: captions, DOG: captions[:40]}, max_captions=None)
    assert len({entry["caption"] for entry in plan[PERSON]}) == 30_000
    assert all(len(entry["images"]) == 1 for entry in plan[PERSON])
    assert [len(entry["images"]) for entry in plan[DOG]] == [3] * 40
    few = soa.plan_samples({DOG: captions[:40]}, max_captions=5, seed=1)[DOG]
    assert len(few) == 5
    assert few != plan[DOG][:5]


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        (f"{DOG}.pkl", b"\x80\x02]q\x00(", "label_16_dog.pkl is cut, damaged"),
        (f"{DOG}.pkl", b"garbage", "label_16_dog.pkl is cut, damaged"),
        (f"{DOG}.pkl", pickle.dumps([]), "an empty one"),
        (f"{DOG}.pkl", pickle.dumps([[5, 1], [5, 2]]), 'entry 0: must be an object with a "capt'),
        (f"{DOG}.json", b"{", "label_16_dog.json is not a JSON file"),
        (f"{DOG}.json", b'[{"caption": "a dog"}, {"caption": " "}]', "entry 1: every caption is"),
        (f"{DOG}.json", b'[{"caption": 5}]', "entry 0"),
        ("label_80_unicorn.json", b"[]", "names no label_XX from 00 to 79"),
        ("label_1_bicycle.json", b"[]", "names no label_XX"),
        ("label_01_bike.json", b"[]", "a label twice"),
        ("other.json", b"[]", "no caption files"),
    ],
)
def test_bad_captions_are_named(run, tiny_workdir, tmp_path, name, content, hint):
    captions = {BICYCLE: ["a"]} if "bike" in name else {}
    folder = write_captions(tmp_path / "captions", captions)
    (folder / name).write_bytes(content)
    status, _, errors = generate(run, tiny_workdir, folder, tmp_path / "out")
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "flags", "hint"),
    [
        ("out", ["--num", 0], "--num"),
        ("out", ["--max-captions", 0], "--max-captions"),
        ("out", ["--captions", "absent"], "absent has no caption files"),
        ("out", ["--step", 5], "no checkpoint of step 5"),
        ("file", [], "file"),
        ("full", [], "choose another folder"),
    ],
)
def test_mistakes_in_generate_are_named(run, tiny_workdir, tmp_path, out, flags, hint):
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "images").mkdir(parents=True)
    captions = write_captions(tmp_path / "captions")
    status, _, errors = generate(run, tiny_workdir, captions, tmp_path / out, *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors


# Scores.


@pytest.mark.parametrize("protocol", range(2, 6))
def test_scores_equal_those_by_hand(run, samples, tmp_path, protocol):
    detections = write_detections(tmp_path / "detections", DETECTED, protocol)
    status, output, _ = score(run, samples, detections)
    assert status == 0
    assert "SOA-C: 0.5000" in output
    assert "SOA-I: 0.5000" in output
    scores = json.loads((detections / "soa.json").read_text())
    assert scores["soa_c"] == pytest.approx(SOA_C)
    assert scores["soa_i"] == pytest.approx(SOA_I)
    assert {k: v["accuracy"] for k, v in scores["labels"].items()} == {
        PERSON: 0.75, BICYCLE: 0.5, DOG: 0.25
    }  # fmt: skip
    assert scores["soa_c_top40"] is None
    assert scores["notes"][0] == "3 of 80 labels"


def test_classes_weigh_equally_in_soa_c_and_images_in_soa_i():
    scores = soa.compute_scores({BICYCLE: (1, 2), DOG: (1, 4), PERSON: (6, 6)})
    assert scores["soa_c"] == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert scores["soa_i"] == pytest.approx(8 / 12)
    assert [*scores["labels"]] == [PERSON, BICYCLE, DOG]


def test_top_and_bottom_40_go_by_the_number_of_images():
    # The lower the number of the label, the more images; even labels are recognized, and 0 is not.
    counts = {f"label_{i:02d}_x": ((100 - i) * (i % 2 == 0 and i > 0), 100 - i) for i in range(80)}
    scores = soa.compute_scores(counts)
    assert scores["soa_c"] == pytest.approx(39 / 80)
    assert scores["soa_c_top40"] == pytest.approx(19 / 40)
    assert scores["soa_c_bottom40"] == pytest.approx(20 / 40)


def test_plain_json_scores_as_the_pickles_do(run, samples, tmp_path):
    file = tmp_path / "detections.json"
    for convert in (lambda c: c, lambda c: soa.CLASSES[c]):
        detected = {
            label: {f"{i}.png": [*map(convert, classes)] for i, classes in enumerate(images)}
            for label, images in DETECTED.items()
        }
        file.write_text(json.dumps(detected))
        status, output, _ = score(run, samples, file, "--json")
        assert status == 0
        scores = json.loads(output)
        assert (scores["soa_c"], scores["soa_i"]) == pytest.approx((SOA_C, SOA_I))
        assert (tmp_path / "soa.json").exists()


def test_samples_of_generate_are_scored_with_their_origin(run, tiny_workdir, tmp_path):
    out = tmp_path / "out"
    captions = write_captions(tmp_path / "captions")
    assert generate(run, tiny_workdir, captions, out, "--max-captions", 1)[0] == 0
    detected = {
        folder.name: {image.name: [] for image in folder.iterdir()}
        for folder in (out / "images").iterdir()
    }
    (tmp_path / "d.json").write_text(json.dumps(detected))
    status, output, _ = score(run, out, tmp_path / "d.json", "--json")
    assert status == 0
    scores = json.loads(output)
    assert (scores["soa_c"], scores["num_images"]) == (0, 7)
    assert scores["samples"]["step"] == 6
    assert "other numbers of captions" in scores["notes"][1]
    (out / "images" / DOG / "00000_1.png").unlink()
    status, _, errors = score(run, out, tmp_path / "d.json")
    assert status == 2
    assert f"{DOG}/00000_1.png is missing" in errors


FULL = {label: {f"{i}.png": [] for i in range(count)} for label, count in COUNTS.items()}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({DOG: {f"{i}.png": [] for i in range(3)}}, f"{DOG}/3.png has no detections"),
        ({DOG: FULL[DOG] | {"9.png": []}}, f"{DOG}/9.png has detections, and is not among the"),
        ({"label_17_horse": FULL[DOG]}, "label_17_horse has detections, and is not among"),
        ({DOG: {}}, f"{DOG}/0.png has no detections"),
        ({DOG: []}, f"must hold images by name for {DOG}"),
        ({DOG: FULL[DOG] | {"0.png": "dog"}}, f"detections of {DOG}/0.png are no list"),
        ({DOG: FULL[DOG] | {"0.png": ["airplane"]}}, "'airplane' is no class of YOLOv3; did you"),
        ({DOG: FULL[DOG] | {"0.png": [80]}}, "a number from 0 to 79"),
        ({"unicorn": {}}, "'unicorn' names no label_XX"),
        ({"label_16_cat": FULL[DOG]}, "a label twice"),
    ],
)
def test_detections_that_do_not_fit_are_named(run, samples, tmp_path, change, hint):
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(FULL | change))
    status, _, errors = score(run, samples, file)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors
    assert not (tmp_path / "soa.json").exists()


def test_missing_or_empty_folders_are_named(run, samples, tmp_path):
    detections = write_detections(tmp_path / "detections", DETECTED)
    cases = {(tmp_path / "absent", detections): "absent has no folders label_XX_NAME"}
    cases[samples, tmp_path / "absent"] = "absent: no detected_LABEL.pkl"
    cases[samples, tmp_path / "absent.json"] = "cannot read"
    (detections / f"detected_{DOG}.pkl").unlink()
    cases[samples, detections] = f"{DOG} has no detections"
    for (images, found), hint in cases.items():
        status, _, errors = score(run, images, found)
        assert status == 2
        assert hint in errors
    (samples / "label_17_horse").mkdir()
    status, _, errors = score(run, samples, detections)
    assert status == 2
    assert "no images of\n  label_17_horse" in errors


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_or_malformed_pickles_are_named_and_not_run(run, samples, tmp_path):
    detections = write_detections(tmp_path / "detections", DETECTED)
    file = detections / f"detected_{DOG}.pkl"
    for content, hint in {
        pickle.dumps({"0.png": MakesFolder(tmp_path / "made")}): "asks for the Python object posix",
        file.read_bytes()[:40]: "is cut, damaged",
        pickle.dumps([1]): "must hold images by name",
        pickle.dumps({"0.png": [[], 16, []]}): "0.png are no list",
        pickle.dumps({"0.png": [16]}): "0.png are no list",
        b"cnumpy\nndarray\n}U\x01aK\x01sb.": "changes what it imports",
    }.items():
        file.write_bytes(content)
        status, _, errors = score(run, samples, detections)
        assert status == 2
        assert re.search(rf"{file.name}.*{hint}", errors)
    assert not (tmp_path / "made").exists()


def test_damaged_manifest_is_named(tmp_path, samples):
    (tmp_path / "manifest.json").write_text('{"labels": {"label_16_dog": [{}]}}')
    with pytest.raises(UserError, match=r"manifest\.json"):
        soa.list_samples(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"manifest\.json must be a JSON object"):
        soa.list_samples(tmp_path)
