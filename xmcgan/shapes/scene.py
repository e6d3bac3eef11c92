"""Scenes of the `shapes` data set and their drawing, pure functions of a NumPy generator."""

import dataclasses
import io
import json
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

IMAGE_SIZE = 128
MAX_OBJECTS = 3

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
COLORS = {
    "red": (214, 36, 40),
    "orange": (245, 138, 28),
    "yellow": (250, 222, 52),
    "green": (46, 168, 66),
    "cyan": (54, 212, 220),
    "blue": (32, 92, 226),
    "purple": (146, 44, 160),
    "pink": (250, 140, 190),
}
BACKGROUNDS = {
    "white": (238, 238, 238),
    "gray": (142, 142, 142),
    "black": (24, 24, 26),
    "beige": (222, 204, 172),
    "brown": (98, 70, 50),
    "dark blue": (26, 34, 72),
    "dark green": (24, 62, 42),
    "light blue": (180, 206, 230),
}
# Colors that a background would hide or make hard to name; held to a CIELAB distance by a test.
HIDDEN_ON: dict[str, tuple[str, ...]] = dict.fromkeys(BACKGROUNDS, ()) | {
    "dark blue": ("blue", "purple"),
    "dark green": ("green",),
    "light blue": ("cyan",),
}
BACKGROUND_KINDS = ("plain", "gradient", "noise")
POSITIONS = (
    *("top left", "top center", "top right"),
    *("center left", "center", "center right"),
    *("bottom left", "bottom center", "bottom right"),
)
# Radius in pixels (low, high). A cell is 42.7 wide, so two large neighbors never touch.
RADIUS = {"small": (10.0, 12.0), "large": (17.5, 18.5)}
JITTER = {"small": 4.5, "large": 2.0}  # of the center, in pixels

_SUPERSAMPLING = 4
_MAX_TILT = math.radians(7)  # a square stays a square and never reads as a diamond
_LIGHTNESS_JITTER, _CHANNEL_JITTER = 10, 4


def cell(position: str) -> tuple[int, int]:
    """(row, column) of an area."""
    return divmod(POSITIONS.index(position), 3)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One drawn object: its named attributes and exact geometry in pixels."""

    shape: str
    color: str
    size: str
    position: str
    x: float
    y: float
    radius: float
    tilt: float
    rgb: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The objects and the background."""

    objects: tuple[SceneObject, ...]
    background: str
    background_kind: str
    background_rgb: tuple[int, int, int]

    def to_json(self) -> str:
        """Attributes as JSON, for metrics that compare an image with its caption."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def _jittered(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    shift = rng.integers(-_LIGHTNESS_JITTER, _LIGHTNESS_JITTER + 1)
    shift = shift + rng.integers(-_CHANNEL_JITTER, _CHANNEL_JITTER + 1, size=3)
    red, green, blue = (int(v) for v in np.clip(np.add(rgb, shift), 0, 255))
    return red, green, blue


def _sample_object(rng: np.random.Generator, shape: str, color: str, position: str) -> SceneObject:
    size = ("small", "large")[rng.integers(2)]
    row, column = cell(position)
    side = IMAGE_SIZE / 3
    dx, dy = rng.uniform(-JITTER[size], JITTER[size], size=2)
    x, y = round((column + 0.5) * side + float(dx), 2), round((row + 0.5) * side + float(dy), 2)
    radius = round(float(rng.uniform(*RADIUS[size])), 2)
    tilt = round(float(rng.uniform(-_MAX_TILT, _MAX_TILT)), 4)
    rgb = _jittered(rng, COLORS[color])
    return SceneObject(shape, color, size, position, x, y, radius, tilt, rgb)


def sample_scene(rng: np.random.Generator, max_objects: int = MAX_OBJECTS) -> Scene:
    """Sample a scene of 1 to `max_objects` objects in different areas.

    No two share both shape and color, so that "a red circle" names one object, and none has a
    color that its background would hide.
    """
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    kind = BACKGROUND_KINDS[rng.integers(len(BACKGROUND_KINDS))]
    background_rgb = _jittered(rng, BACKGROUNDS[background])
    count = int(rng.integers(1, max_objects + 1))
    colors = [color for color in COLORS if color not in HIDDEN_ON[background]]
    looks = rng.choice(len(SHAPES) * len(colors), size=count, replace=False)
    cells = rng.choice(len(POSITIONS), size=count, replace=False)
    objects = tuple(
        _sample_object(
            rng, SHAPES[look // len(colors)], colors[look % len(colors)], POSITIONS[cell]
        )
        for look, cell in zip(looks, cells, strict=True)
    )
    return Scene(objects, background, kind, background_rgb)


def _star(points: int, inner: float) -> Float[np.ndarray, "n 2"]:
    angles = -np.pi / 2 + np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> Float[np.ndarray, "n 2"]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.5


_ARM = 0.34
# Outlines in a unit circle, y down; circle and ring are drawn as ellipses.
_OUTLINES: dict[str, Float[np.ndarray, "n 2"]] = {
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82,
    "triangle": np.array([(0, -1), (0.98, 0.78), (-0.98, 0.78)]),
    "star": _star(5, 0.42),
    "cross": np.array(
        [
            *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
            *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
        ]
    ),
    "diamond": np.array([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]),
    "heart": _heart(),
}


def _paste_object(canvas: Image.Image, item: SceneObject) -> None:
    """Paste one object, antialiased by supersampling its bounding box only."""
    half = math.ceil(item.radius) + 2
    left, top = math.floor(item.x) - half, math.floor(item.y) - half
    side = 2 * half + 1
    mask = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(mask)
    center = np.array([item.x - left, item.y - top]) * _SUPERSAMPLING
    radius = item.radius * _SUPERSAMPLING
    if item.shape in ("circle", "ring"):
        draw.ellipse([*(center - radius), *(center + radius)], fill=255)
        if item.shape == "ring":
            hole = 0.55 * radius
            draw.ellipse([*(center - hole), *(center + hole)], fill=0)
    else:
        cos, sin = math.cos(item.tilt), math.sin(item.tilt)
        turned = _OUTLINES[item.shape] @ np.array([[cos, sin], [-sin, cos]])
        draw.polygon([(float(x), float(y)) for x, y in turned * radius + center], fill=255)
    canvas.paste(item.rgb, (left, top), mask.reduce(_SUPERSAMPLING))


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Background whose lightness varies softly and never by more than a named tone."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if scene.background_kind == "plain":
        return Image.new("RGB", size, scene.background_rgb)
    if scene.background_kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        axis = np.linspace(-0.5, 0.5, IMAGE_SIZE)
        shade = 28 * (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle))
    else:
        cells = int(rng.integers(4, 13))
        coarse = rng.normal(size=(cells, cells)).astype(np.float32)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        shade = np.clip(np.asarray(image) * 7, -16, 16)
    pixels = np.asarray(scene.background_rgb) + np.rint(shade)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def render_scene(scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "128 128 3"]:
    """RGB pixels; `rng` makes the background's texture, which no caption names."""
    canvas = _background(scene, rng)
    for item in scene.objects:
        _paste_object(canvas, item)
    return np.asarray(canvas)


def encode_png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode as PNG at a low compression level, three times as fast as the default."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
