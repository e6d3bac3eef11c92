"""The detector of `shapes`: learns, is cached whole, and says how well it sees."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import EvaluationError
from xmcgan.shapes import detector as shapes_detector
from xmcgan.shapes.dataset import make_example
from xmcgan.shapes.detections import accuracy, contents
from xmcgan.shapes.detector import Detector, default_recipe, open_detector
from xmcgan.shapes.detector_training import (
    ShapesDetector,
    TrainingRecipe,
    cut_areas,
    held_out_scenes,
    train_detector,
    training_areas,
    view,
)
from xmcgan.shapes.scene import (
    COLORS,
    POSITIONS,
    Scene,
    SceneObject,
    encode_png,
    render_scene,
    sample_scene,
)

SMALL = TrainingRecipe(32, num_scenes=600, num_epochs=5, batch_size=32, width=8, learning_rate=5e-3)
TINY = TrainingRecipe(16, num_scenes=40, num_epochs=1, batch_size=32, width=4)


@pytest.fixture(scope="module")
def small() -> Detector:
    """Return a detector that has learnt colors and places, and some shapes."""
    return Detector(SMALL, train_detector(SMALL))


@pytest.fixture
def counted(monkeypatch) -> list[TrainingRecipe]:
    """Return the list of trainings that took place; they cost nothing and teach nothing."""
    trained = []

    def train(recipe):
        trained.append(recipe)
        blank = jax.ShapeDtypeStruct((1, 6, 6, 3), np.float32)
        shapes = jax.eval_shape(ShapesDetector(recipe.width).init, jax.random.key(0), blank)[
            "params"
        ]
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)

    monkeypatch.setattr(shapes_detector, "train_detector", train)
    monkeypatch.setattr(shapes_detector, "HELD_OUT_SCENES", 20)
    return trained


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_areas_cover_their_ninth_of_the_image_and_little_more(size):
    rows, columns = np.mgrid[:size, :size]
    pixels = np.stack([rows, columns, rows], axis=-1)[None]
    areas = np.asarray(cut_areas(pixels))
    assert areas.shape == (1, 9, 3 * size // 8, 3 * size // 8, 3)
    for index, area in enumerate(areas[0]):
        for axis, cell in enumerate(divmod(index, 3)):
            low, high = area[..., axis].min(), area[..., axis].max() + 1
            assert low <= cell * size / 3
            assert high >= (cell + 1) * size / 3
            assert high - low <= 1.2 * size / 3


@pytest.mark.parametrize("position", POSITIONS)
def test_an_object_is_seen_in_its_own_area(small, position):
    row, column = divmod(POSITIONS.index(position), 3)
    x, y = (column + 0.5) * 128 / 3, (row + 0.5) * 128 / 3
    item = SceneObject("square", "red", "large", position, x, y, 18, 0.0, COLORS["red"])
    scene = Scene((item,), "gray", "plain", (142, 142, 142))
    pixels = render_scene(scene, np.random.default_rng(0))[2::4, 2::4]
    seen = small(pixels[None])
    assert np.flatnonzero(seen.present[0]).tolist() == [POSITIONS.index(position)]
    assert [item.color for item in seen.objects_of(0)] == ["red"]
    assert seen.background_of(0) == "gray"


def test_seconds_of_training_give_colors_and_places(small):
    images, truth, _ = held_out_scenes(300, 32)
    shares = accuracy(small(images), truth)
    assert shares["color_position"] > 0.97
    assert shares["background"] > 0.97
    assert shares["shape"] > 0.6


def test_detections_do_not_depend_on_batches_or_order(small):
    images, _, _ = held_out_scenes(150, 32)
    whole, reversed_ = small(images), small(images[::-1])
    parts = [small(images[:1]), small(images[1:])]
    for field in dataclasses.fields(whole):
        values = getattr(whole, field.name)
        assert np.array_equal(values, getattr(reversed_, field.name)[::-1])
        assert np.array_equal(values, np.concatenate([getattr(p, field.name) for p in parts]))


def test_training_scenes_follow_from_the_seed_and_are_not_the_held_out_ones():
    areas = [training_areas(dataclasses.replace(TINY, seed=seed))["areas"] for seed in (0, 0, 1)]
    assert np.array_equal(areas[0], areas[1])
    assert not np.array_equal(areas[0], areas[2])
    held_out, _, _ = held_out_scenes(TINY.num_scenes, 16)
    corners = {area.tobytes() for area in np.asarray(cut_areas(held_out))[:, 0]}
    assert not corners & {area.tobytes() for area in areas[0]}


def test_training_is_a_function_of_its_recipe():
    first, second = train_detector(TINY), train_detector(TINY)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = train_detector(dataclasses.replace(TINY, seed=1))
    assert not np.array_equal(other["head"]["kernel"], first["head"]["kernel"])


def test_held_out_scenes_are_in_no_split_of_the_data_set():
    _, _, scenes = held_out_scenes(100, 32)
    held_out = {scene.to_json() for scene in scenes}
    for split in ("train", "validation"):
        drawn = {make_example(0, split, index)[2].to_json() for index in range(100)}
        assert not drawn & held_out


def test_held_out_images_are_those_of_the_pipeline(shapes_pipeline_image):
    for size in (32, 64):
        images, truth, scenes = held_out_scenes(3, size)
        assert np.array_equal(truth.present, contents(scenes).present)
        assert np.array_equal(images[2], shapes_pipeline_image(2, size))


@pytest.fixture
def shapes_pipeline_image():
    """Return a function that passes a held-out scene through PNG and the pipeline's resize."""

    def image(index: int, size: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([0, index], spawn_key=(2,)))
        png = encode_png(render_scene(sample_scene(rng), rng))
        return resize_image(decode_image(png, "scene"), size, "crop")

    return image


def test_large_images_are_reduced_first(tmp_path):
    images, _, _ = held_out_scenes(2, 128)
    assert images.shape == (2, 128, 128, 3)
    assert view(images[0]).shape == (64, 64, 3)
    small_image = np.zeros((32, 32, 3), np.uint8)
    assert view(small_image) is small_image
    detector = open_detector(tmp_path, 128, dataclasses.replace(TINY, image_size=128))
    reduced = np.stack([view(image).repeat(2, axis=0).repeat(2, axis=1) for image in images])
    assert np.array_equal(detector(images).shape, detector(reduced).shape)


def test_a_detector_is_trained_once_and_read_afterwards(tmp_path, counted):
    first = open_detector(tmp_path / "new", 16, TINY)
    again = open_detector(tmp_path / "new", 16, TINY)
    assert counted == [TINY]
    assert first.sha256 == again.sha256
    assert first.accuracy == again.accuracy
    assert set(first.accuracy) >= {"shape", "color_position", "background"}
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert [p.name for p in (tmp_path / "new").iterdir() if p.suffix == ".tmp"] == []


def test_another_recipe_is_refused_by_name(tmp_path, counted):
    open_detector(tmp_path, 16, TINY)
    other = dataclasses.replace(TINY, num_epochs=9)
    with pytest.raises(EvaluationError, match=r"num_epochs: 1 -> 9.*delete it"):
        open_detector(tmp_path, 16, other)
    assert counted == [TINY]


@pytest.mark.parametrize("fault", ["cut", "weight", "recipe", "foreign"])
def test_a_damaged_file_is_refused(tmp_path, counted, fault):
    open_detector(tmp_path, 16, TINY)
    (path,) = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    if fault == "cut":
        path.write_bytes(data[:-40])
    elif fault == "weight":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif fault == "foreign":
        safetensors.numpy.save_file({"a/b": np.zeros(3)}, path)
    else:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata()
        recipe = {**json.loads(metadata["recipe"]), "num_epochs": 9}
        tensors = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file(tensors, path, {**metadata, "recipe": json.dumps(recipe)})
    with pytest.raises(EvaluationError, match=r"is damaged.*delete it"):
        open_detector(tmp_path, 16, TINY)


def test_two_at_once_train_once(tmp_path, counted):
    threads = [threading.Thread(target=open_detector, args=(tmp_path, 16, TINY)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [TINY]


def test_what_a_killed_process_left_is_swept(tmp_path, counted):
    left_over = tmp_path / ".shapes-detector-16.safetensors.123.tmp"
    left_over.write_bytes(b"half")
    open_detector(tmp_path, 16, TINY)
    assert not left_over.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, counted):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(EvaluationError, match=r"cannot write to .*file"):
        open_detector(file, 16, TINY)


@pytest.mark.parametrize("size", [8, 20, 40])
def test_sizes_without_whole_areas_are_refused(size):
    with pytest.raises(EvaluationError, match=f"images of {size} pixels"):
        default_recipe(size)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [(32, 0.97), (64, 0.97), (128, 0.97)])
def test_the_default_detector_is_nearly_always_right(tmp_path, size, least):
    shares = open_detector(tmp_path, size).accuracy
    assert shares["color_position"] > 0.99
    assert shares["background"] > 0.99
    assert shares["shape"] > least
    assert shares["object"] > least
