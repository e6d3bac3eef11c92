"""Network and training of the detector of `shapes`, on freshly drawn scenes: a minute.

Scenes for training are crowded: several sampled scenes are laid over one background, because
drawing a background costs as much as ten objects and the network sees one area at a time.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from xmcgan.data.images import resize_image
from xmcgan.shapes.detections import Detections, contents
from xmcgan.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    HIDDEN_ON,
    POSITIONS,
    RADIUS,
    SHAPES,
    Scene,
    render_scene,
    sample_scene,
)

LARGEST_VIEW = 64  # pixels a side: more tells the detector nothing that it needs
_LAST_SIDE = 6  # of the map that the head reads: coarser ones lose the outline
_TRAINING, _HELD_OUT = 1, 2
_SCENES_LAID_OVER = 4


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """Everything that the weights of a detector depend on."""

    image_size: int  # of the images that it will judge
    num_scenes: int = 4500
    num_epochs: int = 5
    batch_size: int = 128  # areas
    learning_rate: float = 2e-3  # the highest; it rises, then falls to zero along a cosine
    width: int = 24
    seed: int = 0


def cut_areas(images: Shaped[ArrayLike, "b s s c"]) -> Shaped[Array, "b 9 a a c"]:
    """Cut images into nine overlapping squares, row by row.

    A side of 3/8 of the image, at 0, 5/16 and 10/16 of it, covers every third of the image with
    little more, and falls on whole pixels if the image's side is a multiple of 16.
    """
    pixels = jnp.asarray(images)
    size = pixels.shape[1]
    slices = [slice(start, start + 3 * size // 8) for start in (0, 5 * size // 16, 10 * size // 16)]
    return jnp.stack([pixels[:, rows, columns] for rows in slices for columns in slices], axis=1)


class ShapesDetector(nn.Module):
    """Convolutional classifier of areas in [0, 1], with the same weights for every area."""

    width: int  # channels of the first convolution; the others have twice as many

    @nn.compact
    def __call__(self, areas: Float[Array, "n a a 3"]) -> dict[str, Float[Array, "n k"]]:
        """Logits by attribute."""
        he_normal = nn.initializers.he_normal()
        index = 0

        def convolve(x: Array, features: int, stride: int) -> Array:
            nonlocal index
            conv = nn.Conv(features, (3, 3), stride, kernel_init=he_normal, name=f"conv{index}")
            index += 1
            return nn.relu(conv(x))

        x = convolve(2 * areas - 1, self.width, 1)
        while x.shape[1] > _LAST_SIDE:
            x = convolve(x, 2 * self.width, 2)
        x = convolve(x, 2 * self.width, 1).reshape(len(x), -1)
        x = nn.relu(nn.Dense(128, kernel_init=he_normal, name="hidden")(x))
        names = ("present", "shape", "color", "size", "background")
        counts = [1, *map(len, (SHAPES, COLORS, RADIUS, BACKGROUNDS))]
        logits = nn.Dense(sum(counts), name="head")(x)
        parts = jnp.split(logits, np.cumsum(counts)[:-1].tolist(), axis=-1)
        return dict(zip(names, parts, strict=True))


def _rng(purpose: int, seed: int, index: int) -> np.random.Generator:
    # The data set's generators have no spawn key, so none of them has these states, whatever
    # its seed below 2**64; nor has held-out scene i those of training scene i.
    return np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=(purpose,)))


def _crowded(rng: np.random.Generator) -> Scene:
    scene, *others = (sample_scene(rng) for _ in range(_SCENES_LAID_OVER))
    objects = {item.position: item for item in scene.objects}
    for item in (item for other in others for item in other.objects):
        if item.color not in HIDDEN_ON[scene.background]:
            objects.setdefault(item.position, item)
    return dataclasses.replace(scene, objects=tuple(objects.values()))


def view(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """An image as the detector sees it: a large one reduced."""
    if len(image) <= LARGEST_VIEW:
        return image
    return resize_image(Image.fromarray(image), LARGEST_VIEW, "crop")


def _rendered(scene: Scene, rng: np.random.Generator, image_size: int) -> np.ndarray:
    # The pipeline's own resize; `shapes` is square, so that "crop" and "squash" agree.
    return resize_image(Image.fromarray(render_scene(scene, rng)), image_size, "crop")


def held_out_scenes(
    num: int, image_size: int, seed: int = 0
) -> tuple[UInt8[np.ndarray, "n s s 3"], Detections, list[Scene]]:
    """Scenes like those of the data set, in neither it nor the training: images and contents."""
    images, scenes = [], []
    for index in range(num):
        rng = _rng(_HELD_OUT, seed, index)
        scenes.append(sample_scene(rng))
        images.append(_rendered(scenes[-1], rng, image_size))
    return np.stack(images), contents(scenes), scenes


def training_areas(recipe: TrainingRecipe) -> dict[str, np.ndarray]:
    """Areas (n, a, a, 3) of crowded scenes, some a bit aside, and fields of `Detections`."""
    images, scenes = [], []
    for index in range(recipe.num_scenes):
        rng = _rng(_TRAINING, recipe.seed, index)
        scenes.append(_crowded(rng))
        image = view(_rendered(scenes[-1], rng, recipe.image_size))
        reach = len(image) // 32
        dy, dx = rng.integers(-reach, reach + 1, size=2) * rng.integers(2)
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        images.append(padded[reach + dy :, reach + dx :][: len(image), : len(image)])
    truth = vars(contents(scenes))
    areas = np.asarray(cut_areas(np.stack(images)))
    labels = {name: values.reshape(-1) for name, values in truth.items()}
    labels["background"] = np.repeat(truth["background"], len(POSITIONS))
    return {"areas": areas.reshape(-1, *areas.shape[2:]), **labels}


def _augment(areas: Float[Array, "n a a 3"], key: Array) -> Float[Array, "n a a 3"]:
    """Mirror areas, and blur, fade and grain them a little, as generated images are."""
    keys = jax.random.split(key, 6)
    per_area = (len(areas), 1, 1, 1)
    # Mirroring is exact: every shape is its own mirror image, whatever its tilt.
    areas = jnp.where(jax.random.bernoulli(keys[0], shape=per_area), areas[:, :, ::-1], areas)
    padded = jnp.pad(areas, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    # Of the areas half stay sharp: most real images are.
    blur = jnp.maximum(jax.random.uniform(keys[1], per_area, minval=-1), 0)
    areas = areas + blur * (soft - areas)
    contrast = jax.random.uniform(keys[2], per_area, minval=0.9, maxval=1.1)
    light = jax.random.uniform(keys[3], per_area, minval=-0.03, maxval=0.03)
    deviation = 0.05 * jnp.maximum(jax.random.uniform(keys[4], per_area, minval=-1), 0)
    grain = deviation * jax.random.normal(keys[5], areas.shape)
    mean = areas.mean(axis=(1, 2), keepdims=True)
    return mean + contrast * (areas - mean) + light + grain


def _loss(module: ShapesDetector, params: Any, batch: dict[str, Array], areas: Array) -> Array:
    logits: Any = module.apply({"params": params}, areas)
    there = batch["present"].astype(jnp.float32)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    total = optax.sigmoid_binary_cross_entropy(logits["present"][:, 0], there)
    total += entropy(logits["background"], batch["background"])
    for name in ("shape", "color", "size"):
        total += there * entropy(logits[name], batch[name])
    return total.mean()


def _batches(present: np.ndarray, recipe: TrainingRecipe) -> Iterator[np.ndarray]:
    """Indices: every area with an object once per epoch, and a fifth of the empty ones."""
    rng = _rng(_TRAINING, recipe.seed, recipe.num_scenes)  # an index that no scene has
    full, empty = np.flatnonzero(present), np.flatnonzero(~present)
    for _ in range(recipe.num_epochs):
        order = rng.permutation(np.concatenate([full, rng.permutation(empty)[: len(empty) // 5]]))
        for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            yield order[start : start + recipe.batch_size]


def train_detector(recipe: TrainingRecipe) -> Any:
    """Parameters of a `ShapesDetector` as NumPy arrays; a pure function of the recipe."""
    examples = training_areas(recipe)
    indices = list(_batches(examples["present"], recipe))
    module = ShapesDetector(recipe.width)
    num = len(indices)
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, num // 10, num)
    optimizer = optax.adamw(rate, weight_decay=1e-2)
    key = jax.random.key(recipe.seed, impl="rbg")  # compiles faster than the default
    blank = jnp.zeros((1, *examples["areas"].shape[1:]))
    params = jax.jit(module.init)(key, blank)["params"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: dict[str, Array], key: Array, number: int):
        areas = _augment(batch["areas"].astype(jnp.float32) / 255, jax.random.fold_in(key, number))
        grads = jax.grad(functools.partial(_loss, module))(params, batch, areas)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    # None: a bar on a terminal, nothing in a file of logs.
    bar = tqdm(indices, desc="training the detector of shapes", unit="step", disable=None)
    for number, chosen in enumerate(bar):
        batch = {name: values[chosen] for name, values in examples.items()}
        params, opt_state = step(params, opt_state, batch, key, number)
    return jax.tree.map(np.asarray, params)
