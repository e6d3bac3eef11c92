"""Captions of the `shapes` data set: five true sentences for a scene, short and long.

Every caption is true of its scene. None says all there is to say: what a caption leaves out
(a size, a second object, the background) may be anything, as in captions that people write.
"""

import functools
import itertools

import numpy as np

from xmcgan.shapes.scene import Scene, SceneObject, cell

PLACES = {
    "top left": ("in the top left", "in the top left corner", "at the top left"),
    "top center": ("at the top", "in the top center", "at the top center"),
    "top right": ("in the top right", "in the top right corner", "at the top right"),
    "center left": ("on the left", "on the left side", "at the center left"),
    "center": ("in the center", "in the middle", "at the center"),
    "center right": ("on the right", "on the right side", "at the center right"),
    "bottom left": ("in the bottom left", "in the bottom left corner", "at the bottom left"),
    "bottom center": ("at the bottom", "in the bottom center", "at the bottom center"),
    "bottom right": ("in the bottom right", "in the bottom right corner", "at the bottom right"),
}
RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
COUNTS = {1: "one shape", 2: "two shapes", 3: "three shapes"}


@functools.cache
def relations(first: str, second: str) -> tuple[str, ...]:
    """Relations (keys of `RELATIONS`) of two `POSITIONS`, as in "first is left of second".

    An axis is named only if the areas differ at least as much along it as along the other: one row
    down and two columns right is "right of", not "below".
    """
    rows, columns = (b - a for a, b in zip(cell(first), cell(second), strict=True))
    found = []
    if columns and abs(columns) >= abs(rows):
        found.append("left of" if columns > 0 else "right of")
    if rows and abs(rows) >= abs(columns):
        found.append("above" if rows > 0 else "below")
    return tuple(found)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun(item: SceneObject, with_size: bool) -> str:
    return _article(f"{item.size} " * with_size + f"{item.color} {item.shape}")


def _joined(phrases: list[str]) -> str:
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def _order(rng: np.random.Generator, scene: Scene) -> list[SceneObject]:
    return [scene.objects[i] for i in rng.permutation(len(scene.objects))]


def _everything(rng: np.random.Generator, scene: Scene) -> str:
    """Name every object, with sizes if the sentence stays short."""
    items = _order(rng, scene)
    with_size = len(items) < 3 and rng.random() < 0.5
    phrase = _joined([_noun(item, with_size) for item in items])
    opening = ("", "a picture of ", "there is ", "an image with ", f"{COUNTS[len(items)]}: ")
    return _pick(rng, opening) + phrase


def _places(rng: np.random.Generator, scene: Scene) -> str:
    """Phrase where one or two objects are."""
    items = _order(rng, scene)[:2]
    with_size = len(items) == 1 and rng.random() < 0.7
    return _joined([f"{_noun(o, with_size)} {_pick(rng, PLACES[o.position])}" for o in items])


def _one_place(rng: np.random.Generator, scene: Scene) -> str:
    """Phrase where one object is, in one of several orders."""
    item = _order(rng, scene)[0]
    place = _pick(rng, PLACES[item.position])
    with_size = bool(rng.random() < 0.5)
    forms = (
        f"{_noun(item, with_size)} {place}",
        f"there is {_noun(item, with_size)} {place}",
        f"{place} there is {_noun(item, with_size)}",
        f"the {item.shape} {place} is {item.color}",
        f"the {item.color} {item.shape} is {place}",
    )
    return _pick(rng, forms)


def _relation(rng: np.random.Generator, scene: Scene) -> str:
    """Relate two objects; a lone object gets its place instead."""
    pairs = [
        (first, second, name)
        for first, second in itertools.permutations(scene.objects, 2)
        for name in relations(first.position, second.position)
    ]
    if not pairs:
        return _places(rng, scene)
    first, second, name = pairs[rng.integers(len(pairs))]
    words = _pick(rng, RELATIONS[name])
    subject = _noun(first, bool(rng.random() < 0.4))
    verb = _pick(rng, ("", "", "is "))
    return f"{subject} {verb}{words} {_noun(second, bool(rng.random() < 0.4))}"


def _on_background(rng: np.random.Generator, scene: Scene) -> str:
    """Name the background with up to two objects, or with how many there are."""
    ground = f"on {_article(scene.background)} background"
    if rng.random() < 0.15:
        return f"{COUNTS[len(scene.objects)]} {ground}"
    items = _order(rng, scene)[:2]
    return f"{_joined([_noun(item, bool(rng.random() < 0.3)) for item in items])} {ground}"


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different captions, one of each kind, in lower case without a period."""
    captions: list[str] = []
    for kind in (_everything, _places, _one_place, _relation, _on_background):
        caption = kind(rng, scene)
        while caption in captions:
            caption = kind(rng, scene)
        captions.append(caption)
    return captions
