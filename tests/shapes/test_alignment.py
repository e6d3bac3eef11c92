"""Alignment of `shapes`: exact on scenes, by hand on small cases, and at chance when shuffled."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from xmcgan.errors import DataError, EvaluationError
from xmcgan.shapes import alignment
from xmcgan.shapes.alignment import KINDS, detection_scores, shapes_alignment
from xmcgan.shapes.captions import write_captions
from xmcgan.shapes.claims import DescribedObject, parse_claims
from xmcgan.shapes.detections import Detections, accuracy, contents
from xmcgan.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    Scene,
    SceneObject,
    sample_scene,
)


def scene_of(*objects: str, background: str = "white") -> Scene:
    """Return a scene of objects written as "small red circle @ top left"."""
    items = []
    for text in objects:
        look, position = text.split(" @ ")
        size, color, shape = look.split()
        items.append(SceneObject(shape, color, size, position, 0, 0, 1, 0, (0, 0, 0)))
    return Scene(tuple(items), background, "plain", (0, 0, 0))


def shares(caption: str, *objects: str, background: str = "white") -> dict[str, float]:
    """Return the alignment of one caption with one scene, without the kinds not claimed."""
    seen = contents([scene_of(*objects, background=background)])
    found = shapes_alignment(seen, [parse_claims(caption)])
    assert set(found) == set(KINDS)
    return {kind: values[0] for kind, values in found.items() if not np.isnan(values[0])}


def captioned(num: int, seed: int = 5):
    scenes, captions = [], []
    for index in range(num):
        rng = np.random.default_rng([seed, index])
        scenes.append(sample_scene(rng))
        captions.append(write_captions(scenes[-1], rng)[index % 5])
    return scenes, captions


def by_name(scores) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_every_caption_holds_wholly_in_its_own_scene():
    scenes, captions = captioned(1500)
    found = shapes_alignment(contents(scenes), [parse_claims(c) for c in captions])
    for kind, values in found.items():
        assert np.nanmin(values) == 1, kind
        assert np.sum(~np.isnan(values)) > 50, kind
    assert not np.isnan(found["all"]).any()


def test_objects_are_found_by_shape_and_color_together():
    there = ("small red star @ top left", "small blue circle @ center")
    assert shares("a red circle and a blue circle", *there) == {
        "objects": 0.5,
        "colors": 1,
        "all": 0,
    }


def test_two_claims_of_a_color_need_two_objects_of_it():
    caption = "a red circle and a red star"
    assert shares(caption, "small red circle @ center")["colors"] == 0.5
    both = ("small red ring @ center", "small red heart @ top left")
    assert shares(caption, *both)["colors"] == 1


@pytest.mark.parametrize("position", POSITIONS)
def test_a_position_holds_in_its_own_area_only(position):
    place = {
        "center": "in the center",
        "top center": "at the top",
        "bottom center": "at the bottom",
    }
    words = {**place, "center left": "on the left", "center right": "on the right"}
    caption = f"a red circle {words.get(position, f'in the {position}')}"
    for other in POSITIONS:
        found = shares(caption, f"small red circle @ {other}")
        assert found["objects"] == 1
        assert found["positions"] == found["all"] == found["placement"] == (other == position)


# Where the blue star must stand for "a red circle in the middle is ... a blue star".
@pytest.mark.parametrize(
    ("words", "areas"),
    [
        ("left of", {"top right", "center right", "bottom right"}),
        ("right of", {"top left", "center left", "bottom left"}),
        ("above", {"bottom left", "bottom center", "bottom right"}),
        ("below", {"top left", "top center", "top right"}),
    ],
)
def test_a_relation_holds_by_the_areas_of_subject_and_object(words, areas):
    for area in set(POSITIONS) - {"center"}:
        there = ("small red circle @ center", f"large blue star @ {area}")
        found = shares(f"a red circle {words} a blue star", *there)
        assert found["relations"] == found["all"] == (area in areas), area


def test_a_relation_fails_where_the_other_axis_differs_more():
    there = ("small red circle @ top left", "small blue star @ center right")
    assert shares("a red circle left of a blue star", *there)["relations"] == 1
    assert shares("a red circle above a blue star", *there)["relations"] == 0


def test_a_relation_needs_both_objects():
    assert shares("a red circle left of a blue star", "small red circle @ top left") == {
        "objects": 0.5,
        "colors": 0.5,
        "relations": 0,
        "all": 0,
    }


def test_size_background_and_count_are_compared():
    there = ("small red circle @ center",)
    found = shares("a large red circle on a gray background", *there)
    assert (found["sizes"], found["background"], found["all"]) == (0, 0, 0)
    assert shares("two shapes: a red circle and a blue star", *there)["counts"] == 0
    assert shares("one shape: a red circle", *there, "small red ring @ top left")["counts"] == 0
    assert shares("one shape on a brown background", *there, background="brown") == {
        "background": 1,
        "counts": 1,
        "all": 1,
    }


def test_all_holds_by_one_choice_of_equal_objects():
    there = ("small red circle @ top left", "large red circle @ center")
    found = shares("a small red circle in the center", *there)
    assert found.pop("placement") == 0.5
    assert found == {"objects": 1, "colors": 1, "positions": 1, "sizes": 1, "all": 0}


def test_placement_is_free_of_how_many_objects_are_right():
    caption = "a red circle in the center and a blue star at the top"
    found = shares(caption, "small red circle @ center", "small green star @ top center")
    assert (found["positions"], found["placement"]) == (0.5, 1)
    assert "placement" not in shares(caption, "small red star @ center")
    rng = np.random.default_rng(0)
    claims = [parse_claims("a red circle in the center")] * 3000
    anywhere = [scene_of(f"small red circle @ {rng.choice(POSITIONS)}") for _ in claims]
    right = shapes_alignment(contents(anywhere), claims)["placement"]
    assert right.mean() == pytest.approx(1 / 9, abs=0.02)


def test_shuffled_captions_score_at_chance_and_real_images_at_one():
    scenes, captions = captioned(600)
    seen, claims = contents(scenes), [parse_claims(c) for c in captions]
    scores = detection_scores(seen, claims, real=seen, resamples=20, seed=0)
    values = by_name(scores)
    assert len(values) == 3 * len(KINDS)
    for kind in KINDS:
        assert values[f"{kind}"] == values[f"{kind}_real"] == 1
    # One to three objects of 64 looks; a background of 8; a count of 3.
    assert values["all_shuffled"] < 0.05
    assert values["objects_shuffled"] == pytest.approx(2 / 64, abs=0.015)
    assert values["positions_shuffled"] < 0.02
    assert values["placement_shuffled"] < 0.35
    assert values["background_shuffled"] == pytest.approx(1 / 8, abs=0.06)
    assert values["counts_shuffled"] == pytest.approx(1 / 3, abs=0.12)
    assert all(score.better == "higher" for score in scores.values())
    assert all(score.low <= score.value <= score.high for score in scores.values())


def test_images_with_right_objects_in_wrong_places_lose_positions_only():
    scenes, captions = captioned(400)
    order = np.random.default_rng(0).permutation(len(POSITIONS))
    moved = [
        dataclasses.replace(
            scene,
            objects=tuple(
                dataclasses.replace(o, position=POSITIONS[order[POSITIONS.index(o.position)]])
                for o in scene.objects
            ),
        )
        for scene in scenes
    ]
    claims = [parse_claims(c) for c in captions]
    scores = detection_scores(contents(moved), claims, real=contents(scenes), resamples=0, seed=0)
    values = by_name(scores)
    for kind in ("objects", "colors", "sizes", "background", "counts"):
        assert values[f"{kind}"] == 1
    assert values["positions"] < 0.4
    assert values["positions_real"] == 1
    assert all(score.low is None for score in scores.values())


def test_kinds_that_no_caption_claims_have_no_score():
    seen = contents([scene_of("small red circle @ center")] * 2)
    scores = detection_scores(
        seen, [parse_claims("a red circle")] * 2, real=seen, resamples=0, seed=0
    )
    assert {name.split("_")[0] for name in by_name(scores)} == {"all", "objects", "colors"}


def test_interval_narrows_with_more_captions():
    widths = []
    for num in (60, 540):
        scenes, captions = captioned(num)
        found = contents([scenes[0]] * num)
        claims = [parse_claims(c) for c in captions]
        scores = detection_scores(found, claims, real=found, resamples=100, seed=0)
        score = scores["colors"]
        widths.append(score.high - score.low)
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.3)


def test_a_single_image_is_refused():
    seen = contents([scene_of("small red circle @ center")])
    with pytest.raises(EvaluationError, match="at least two"):
        detection_scores(seen, [parse_claims("a red circle")], real=seen, resamples=0, seed=0)


def test_captions_and_images_go_through_parser_and_detector(monkeypatch):
    scenes, captions = captioned(30)
    truth = contents(scenes)
    numbers = np.arange(30, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None, None], (30, 16, 16, 3))

    class Detector:
        recipe, sha256, accuracy = {}, "", {}

        def __call__(self, images) -> Detections:
            return truth.take(images[:, 0, 0, 0])

    monkeypatch.setattr(alignment, "open_detector", lambda *_: Detector())
    context = SimpleNamespace(cache_dir=None, image_size=16, captions=captions, resamples=0, seed=0)
    metric = alignment.ShapesAlignment(context)
    extracted = [metric.extract(side, captions) for side in (images, images[::-1])]
    values = by_name(metric.compute(*extracted))
    assert values["all_real"] == 1
    assert values["all"] < 0.2
    context.captions = ["a dog", *captions[1:]]
    with pytest.raises(DataError, match="'a dog' not understood"):
        alignment.ShapesAlignment(context)


def test_accuracy_counts_each_kind_of_mistake():
    truth = contents([scene_of("small red circle @ center", "large blue star @ top left")] * 2)
    assert set(accuracy(truth, truth).values()) == {1.0}
    shape = truth.shape.copy()
    shape[0, POSITIONS.index("center")] = SHAPES.index("star")
    present = truth.present.copy()
    present[1, POSITIONS.index("top left")] = False
    found = dataclasses.replace(truth, shape=shape, present=present)
    shares = accuracy(found, truth)
    assert shares["shape"] == 0.75
    assert shares["color"] == shares["size"] == shares["background"] == 1
    assert shares["color_position"] == 0.75
    assert shares["object"] == 0.5
    assert shares["present"] == pytest.approx(17 / 18)
    assert shares["count"] == 0.5


def test_contents_number_attributes_as_the_data_set_lists_them():
    seen = contents([scene_of("large pink heart @ bottom right", background="light blue")])
    assert np.flatnonzero(seen.present).tolist() == [8]
    assert DescribedObject("heart", "pink", "large", POSITIONS[8]) in seen.objects_of(0)
    assert (seen.shape[0, 8], seen.color[0, 8]) == (
        SHAPES.index("heart"),
        list(COLORS).index("pink"),
    )
    assert seen.background[0] == list(BACKGROUNDS).index("light blue")
