"""Claims of captions: the inverse of the grammar, held to the scenes themselves."""

import itertools

import numpy as np
import pytest

from xmcgan.errors import DataError
from xmcgan.shapes.captions import write_captions
from xmcgan.shapes.claims import Claims, DescribedObject, parse_claims
from xmcgan.shapes.scene import sample_scene

NUM_SCENES = 4000


def captioned_scenes(num):
    for index in range(num):
        rng = np.random.default_rng([11, 7, index])
        scene = sample_scene(rng)
        yield scene, write_captions(scene, rng)


def false_claims(claims: Claims, scene) -> list[str]:
    """Return the claims that the scene contradicts, by its pixels' coordinates."""
    wrong, items = [], []
    for claim in claims.objects:
        found = [o for o in scene.objects if (o.shape, o.color) == (claim.shape, claim.color)]
        if len(found) != 1:
            return [f"object {claim}"]
        items.append(found[0])
        if claim.size not in (None, found[0].size):
            wrong.append(f"size {claim}")
        if claim.position not in (None, found[0].position):
            wrong.append(f"position {claim}")
    for subject, relation, other in claims.relations:
        dx, dy = items[other].x - items[subject].x, items[other].y - items[subject].y
        gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
        if gap < max(20, 0.6 * max(abs(dx), abs(dy))):
            wrong.append(f"{subject} {relation} {other}")
    if claims.background not in (None, scene.background):
        wrong.append("background")
    if claims.count not in (None, len(scene.objects)):
        wrong.append("count")
    return wrong


def test_every_claim_of_every_caption_is_true_of_its_scene():
    for scene, captions in captioned_scenes(NUM_SCENES):
        for caption in captions:
            claims = parse_claims(caption)
            assert claims.objects or claims.count, caption
            assert false_claims(claims, scene) == [], caption


def test_claims_say_as_much_as_the_words_of_the_caption():
    # Nothing that is said is dropped: each word of weight has its place in the claims.
    for _, captions in captioned_scenes(500):
        for caption in captions:
            claims = parse_claims(caption)
            words = caption.replace(":", "").replace(",", "").split()
            sizes = sum(word in ("small", "large") for word in words)
            assert sum(item.size is not None for item in claims.objects) == sizes
            assert (claims.background is not None) == ("background" in words)
            assert (claims.count is not None) == bool({"shape", "shapes"} & set(words))
            related = {"of", "above", "over", "below", "under"} & set(words)
            related -= {"of"} if "picture" in words else set()
            assert len(claims.relations) == len(related)
            placed = sum(item.position is not None for item in claims.objects)
            assert placed == words.count("the") - ("to" in words) - (words[0] == "the")


def test_claims_of_another_scene_are_mostly_false():
    scenes = list(captioned_scenes(400))
    pairs = itertools.pairwise(scenes)
    wrong = [
        bool(false_claims(parse_claims(c), scene)) for (scene, _), (_, cs) in pairs for c in cs
    ]
    assert np.mean(wrong) > 0.95


RED = DescribedObject("circle", "red")
BLUE = DescribedObject("star", "blue")


@pytest.mark.parametrize(
    ("caption", "claims"),
    [
        ("a red circle", Claims((RED,))),
        ("a picture of a red circle and a blue star", Claims((RED, BLUE))),
        ("two shapes: a red circle and a blue star", Claims((RED, BLUE), count=2)),
        ("one shape on a dark blue background", Claims(background="dark blue", count=1)),
        (
            "an orange ring, a red circle and a blue star",
            Claims((DescribedObject("ring", "orange"), RED, BLUE)),
        ),
        (
            "a large red circle at the top and a blue star on the left side",
            Claims(
                (
                    DescribedObject("circle", "red", "large", "top center"),
                    DescribedObject("star", "blue", None, "center left"),
                )
            ),
        ),
        (
            "in the middle there is a small red circle",
            Claims((DescribedObject("circle", "red", "small", "center"),)),
        ),
        (
            "the circle in the top left corner is red",
            Claims((DescribedObject("circle", "red", None, "top left"),)),
        ),
        (
            "the red circle is at the bottom right",
            Claims((DescribedObject("circle", "red", None, "bottom right"),)),
        ),
        ("a red circle is to the left of a blue star", Claims((RED, BLUE), ((0, "left of", 1),))),
        ("a red circle under a blue star", Claims((RED, BLUE), ((0, "below", 1),))),
        (
            "a red circle and a blue star on a light blue background",
            Claims((RED, BLUE), background="light blue"),
        ),
    ],
)
def test_claims_of_each_form(caption, claims):
    assert parse_claims(caption) == claims


@pytest.mark.parametrize(
    "caption", ["A Red CIRCLE.", " a red circle . ", "a red circle", "an red circle"]
)
def test_case_full_stop_and_article_do_not_matter(caption):
    assert parse_claims(caption) == Claims((RED,))


@pytest.mark.parametrize(
    ("caption", "part"),
    [
        ("", "''"),
        ("a crimson circle", "'a crimson circle'"),
        ("a red circle and a dog", "'a dog'"),
        ("a red circle near the edge", "'near the edge'"),
        ("a red circle on a plaid background", "'plaid'"),
        ("a red circle left of a dog", "'a dog'"),
        ("a red circle left of a blue star and a green ring", "'a blue star and a green ring'"),
        ("four shapes: a red circle", "'four shapes: a red circle'"),
        ("a red circle and a large red circle", "'red circle'"),
        ("a red circle..", "'.'"),
    ],
)
def test_text_outside_the_grammar_is_refused_and_quoted(caption, part):
    with pytest.raises(DataError) as error:
        parse_claims(caption)
    assert f"{part} not understood" in str(error.value)
