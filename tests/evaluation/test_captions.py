"""Scores are made from captions that were chosen once and can be handed on."""

from collections import Counter

import pytest

from xmcgan.data import Example
from xmcgan.errors import EvaluationError
from xmcgan.evaluation import captions as manifests

IDENTITY = {"data": "folder/mine", "fingerprint": "abc", "split": "val", "seed": 0}


def make_source(num: int, per_image: int) -> list[Example]:
    return [
        Example(b"", [f"image {i} caption {j}" for j in range(per_image)], f"{i}.jpg")
        for i in range(num)
    ]


def test_captions_are_distinct_and_spread_over_the_images():
    source = make_source(10, 3)
    chosen = manifests.choose_captions(source, 14, seed=0)
    assert len({choice.caption for choice in chosen}) == 14
    assert sorted(Counter(choice.name for choice in chosen).values()) == [1] * 6 + [2] * 4
    for choice in chosen:
        assert choice.caption in source[choice.example].captions
        assert choice.name == source[choice.example].name


def test_the_first_captions_do_not_depend_on_how_many_are_chosen():
    source = make_source(10, 3)
    assert manifests.choose_captions(source, 30, 1)[:12] == manifests.choose_captions(source, 12, 1)
    assert manifests.choose_captions(source, 12, 1) != manifests.choose_captions(source, 12, 2)


def test_a_text_that_two_images_share_is_taken_once():
    source = [Example(b"", ["A dog."], "a"), Example(b"", ["a  dog.", "a cat."], "b")]
    assert len(manifests.choose_captions(source, 3, 0)) == 2


def test_too_few_captions_are_an_error_unless_as_many_as_there_are_were_asked_for(tmp_path):
    source = make_source(10, 2)
    with pytest.raises(EvaluationError, match=r"21 samples .* has 20 distinct captions"):
        manifests.open_manifest(tmp_path, source, 21, IDENTITY)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        manifest = manifests.open_manifest(tmp_path, source, None, IDENTITY)
        assert manifest.header["num"] == len(manifest.choices) == 20


def test_a_manifest_is_written_once_and_read_afterwards(tmp_path):
    source = make_source(10, 2)
    first = manifests.open_manifest(tmp_path, source, 5, IDENTITY)
    (path,) = tmp_path.iterdir()
    second = manifests.open_manifest(tmp_path, [], 5, IDENTITY)
    assert second == first
    assert second.digest == first.digest
    assert manifests.read_manifest(path, {}).captions == first.captions


def test_a_changed_caption_changes_the_digest(tmp_path):
    first = manifests.open_manifest(tmp_path, make_source(10, 2), 5, IDENTITY)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("image 3", "image three"))
    assert manifests.read_manifest(path, {}).digest != first.digest


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-1], "4 captions where 5"),
        (lambda lines: [*lines[:-1], lines[1]], "twice"),
        (lambda lines: [lines[0].replace("abc", "abd"), *lines[1:]], "fingerprint: abd -> abc"),
        (lambda lines: lines[1:], "not fit|not a manifest"),
        (lambda lines: [*lines, "{"], "not a manifest"),
        (lambda lines: [], "not a manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, edit, message):
    source = make_source(10, 2)
    manifests.open_manifest(tmp_path, source, 5, IDENTITY)
    (path,) = tmp_path.iterdir()
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))
    with pytest.raises(EvaluationError, match=message):
        manifests.open_manifest(tmp_path, source, 5, IDENTITY)


def test_other_images_have_the_same_text_and_are_not_the_same_image():
    examples = [
        Example(b"", ["a cat", "a dog"], "0", image_id="7"),
        Example(b"", ["A  cat"], "1", image_id="7"),  # the same image again
        Example(b"", ["a CAT", "a bird"], "2", image_id="8"),
        Example(b"", ["a bird"], "3", image_id="9"),
    ]
    choices = [
        manifests.CaptionChoice(0, "0", "7", "a cat"),
        manifests.CaptionChoice(0, "0", "7", "a dog"),
        manifests.CaptionChoice(2, "2", "8", "a bird"),
    ]
    assert manifests.find_other_images(examples, choices) == [2, -1, 3]


def test_captions_repeat_in_their_order_up_to_the_number_that_is_asked_for(tmp_path):
    source = make_source(4, 2)
    for _ in range(2):  # written, then read
        found = manifests.open_manifest(tmp_path, source, 21, IDENTITY, repeat=True)
        assert len(found.captions) == found.header["num"] == 21
        assert found.header["distinct"] == len(set(found.captions)) == 8
        assert found.captions == (found.captions[:8] * 3)[:21]
    enough = manifests.open_manifest(tmp_path, source, 8, IDENTITY, repeat=True)
    assert enough.captions == found.captions[:8]
    assert "distinct" not in enough.header


def test_the_localized_narratives_protocol_samples_30000_images_of_8573_narratives(tmp_path):
    source = [
        Example(b"", [f"narrative {i}"], f"{i}.jpg", image_id=str(i // 2)) for i in range(8573)
    ]
    found = manifests.open_manifest(tmp_path, source, None, IDENTITY, repeat=True)
    assert len(found.captions) == 30_000
    counts = Counter(found.captions)
    assert len(counts) == 8573
    assert set(counts.values()) == {3, 4}
