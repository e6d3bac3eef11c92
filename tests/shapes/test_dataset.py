"""Scenes and captions of `shapes`: deterministic, visible and true."""

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from xmcgan.data import DataSet
from xmcgan.data.images import decode_image
from xmcgan.shapes.dataset import make_example
from xmcgan.shapes.scene import BACKGROUNDS, COLORS, HIDDEN_ON, IMAGE_SIZE, SHAPES, cell

NUM = 300
EXAMPLES = [make_example(0, "train", index) for index in range(NUM)]

DIGEST_CODE = """
import hashlib
from xmcgan.shapes.dataset import make_example
print(hashlib.sha256(repr([make_example(3, "train", i) for i in range(5)]).encode()).hexdigest())
"""


def lab(rgb) -> np.ndarray:
    v = np.asarray(rgb) / 255
    v = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ v / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_same_bytes_in_processes_with_different_hash_seeds():
    digests = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST_CODE]
        digests.add(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    expected = repr([make_example(3, "train", i) for i in range(5)]).encode()
    assert digests == {f"{hashlib.sha256(expected).hexdigest()}\n".encode()}


def test_seed_split_and_index_each_change_the_scene():
    images = {
        make_example(*key)[0]
        for key in [(0, "train", 0), (1, "train", 0), (0, "validation", 0), (0, "train", 1)]
    }
    assert len(images) == 4


def test_every_image_has_five_different_captions():
    assert all(len(set(captions)) == 5 for _, captions, _ in EXAMPLES)


def test_most_captions_fit_into_seventeen_tokens():
    # Every word of the vocabulary of `shapes` is one WordPiece; [CLS] and [SEP] make two more.
    lengths = [len(re.findall(r"\w+|[,:]", c)) + 2 for _, cs, _ in EXAMPLES for c in cs]
    assert np.mean(np.array(lengths) <= 17) > 0.95
    assert max(lengths) <= 21


AREA = {"left": 0, "right": 2, "top": 0, "bottom": 2}
OBJECT = re.compile(rf"(?:(small|large) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
PLACE = re.compile(r"(?:in|at|on) the ((?:top|bottom|center|left|right|middle)(?: \w+)?)")


def cell_of(words: str) -> tuple[int, int]:
    """Return the area that a place names: a row or column not named is the central one."""
    words = words.split()
    rows = [AREA[w] for w in words if w in ("top", "bottom")]
    columns = [AREA[w] for w in words if w in ("left", "right")]
    return (rows or [1])[0], (columns or [1])[0]


def cell_drawn(item) -> tuple[int, int]:
    return int(item.y // (IMAGE_SIZE / 3)), int(item.x // (IMAGE_SIZE / 3))


def matches(scene, size, color, shape):
    return [
        o for o in scene.objects if (o.color, o.shape) == (color, shape) and size in (None, o.size)
    ]


def check_caption(caption, scene):
    """Check every claim of a caption against the geometry, by rules of its own."""
    named = [matches(scene, size or None, c, s) for size, c, s in OBJECT.findall(caption)]
    assert all(len(found) == 1 for found in named), caption
    objects = [found[0] for found in named]
    if ground := re.search(r"on an? (.+) background", caption):
        assert ground[1] == scene.background
    if count := re.search(r"(one|two|three) shapes?", caption):
        assert ("one", "two", "three").index(count[1]) + 1 == len(scene.objects)
    if predicate := re.fullmatch(r"the (\w+) (?:in|at|on) the (.+) is (\w+)", caption):
        shape, place, color = predicate.groups()
        (item,) = matches(scene, None, color, shape)
        assert cell_of(place) == cell_drawn(item), caption
    elif places := PLACE.findall(caption):
        assert [cell_of(p) for p in places] == [cell_drawn(o) for o in objects], caption
    if relation := re.search(r"(left of|right of|above|over|below|under)", caption):
        a, b = objects
        dx, dy = b.x - a.x, b.y - a.y
        gap = {"left of": dx, "right of": -dx, "above": dy, "over": dy}.get(relation[1], -dy)
        assert gap > 20, caption  # pixels: half an area, plain to see
        assert gap > max(abs(dx), abs(dy)) * 0.6, caption


def test_every_caption_is_true_of_the_drawn_geometry():
    for _, captions, scene in EXAMPLES:
        for caption in captions:
            check_caption(caption, scene)


def test_caption_check_itself_notices_a_false_caption():
    scene = EXAMPLES[0][2]
    item = scene.objects[0]
    wrong = next(c for c in COLORS if all(o.color != c for o in scene.objects))
    with pytest.raises(AssertionError):
        check_caption(f"a {wrong} {item.shape}", scene)


def test_named_color_stands_at_the_place_of_each_object():
    for image, _, scene in EXAMPLES[:100]:
        pixels = np.asarray(decode_image(image, "scene")).astype(int)
        for item in scene.objects:
            # Halfway up the ring's band for rings; the center lies inside every other shape.
            offset = -0.78 * item.radius if item.shape == "ring" else 0
            seen = pixels[int(item.y + offset), int(item.x)]
            distances = {name: np.linalg.norm(lab(seen) - lab(rgb)) for name, rgb in COLORS.items()}
            assert min(distances, key=distances.get) == item.color


def test_large_objects_cover_more_than_twice_the_area_of_small_ones():
    radii = {"small": [], "large": []}
    for _, _, scene in EXAMPLES:
        for item in scene.objects:
            radii[item.size].append(item.radius)
    assert min(radii["large"]) ** 2 > 2 * max(radii["small"]) ** 2


def test_objects_lie_inside_the_image_and_apart():
    for _, _, scene in EXAMPLES:
        for i, a in enumerate(scene.objects):
            assert a.radius <= min(a.x, a.y) + 2
            assert max(a.x, a.y) + a.radius <= IMAGE_SIZE + 2
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_no_background_hides_a_color_it_may_carry():
    for background, rgb in BACKGROUNDS.items():
        for color, color_rgb in COLORS.items():
            if color not in HIDDEN_ON[background]:
                assert np.linalg.norm(lab(rgb) - lab(color_rgb)) > 40
    for _, _, scene in EXAMPLES:
        assert all(o.color not in HIDDEN_ON[scene.background] for o in scene.objects)


def test_colors_are_well_separated():
    points = [lab(rgb) for rgb in COLORS.values()]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
    assert min(gaps) > 38


def test_edges_are_antialiased():
    image, _, scene = EXAMPLES[[e[2].background_kind for e in EXAMPLES].index("plain")]
    colors = {tuple(c) for c in np.asarray(decode_image(image, "scene")).reshape(-1, 3)}
    assert len(colors) > 1 + len(scene.objects) + 5


def test_all_attributes_occur():
    scenes = [scene for _, _, scene in EXAMPLES]
    objects = [o for scene in scenes for o in scene.objects]
    assert {o.shape for o in objects} == set(SHAPES)
    assert {o.color for o in objects} == set(COLORS)
    assert {cell(o.position) for o in objects} == {(r, c) for r in range(3) for c in range(3)}
    assert {len(s.objects) for s in scenes} == {1, 2, 3}
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {s.background_kind for s in scenes} == {"plain", "gradient", "noise"}


def test_stored_example_equals_the_drawn_one(tiny_root):
    data_set = DataSet("shapes/tiny", tiny_root / "data")
    source = data_set.load("train")
    assert len(source) == 40
    assert len(data_set.load("validation")) == 10
    for example in (source[0], source[39]):
        image, captions, scene = make_example(0, "train", int(example.name.split("-")[1]))
        assert example.image == image
        assert example.captions == captions
        assert json.loads(example.scene) == json.loads(scene.to_json())


def test_a_scene_has_no_more_objects_than_asked_for():
    counts = {most: set() for most in (1, 2, 3)}
    for most, found in counts.items():
        for index in range(60):
            found.add(len(make_example(0, "train", index, most)[2].objects))
    assert counts == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}}
