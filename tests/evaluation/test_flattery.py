"""A score is marked as flattered exactly when training used the network that makes it."""

import dataclasses

import pytest

from xmcgan.config import default_config
from xmcgan.evaluation.flattery import flattered_by
from xmcgan.evaluation.protocols import PROTOCOLS, get_protocol
from xmcgan.evaluation.report import score_lines
from xmcgan.evaluation.results import Result
from xmcgan.evaluation.scores import Score


def config(*, image_loss: str = "", discriminator: str = "paper"):
    made = default_config()
    made.losses.image_pretrained.enabled = bool(image_loss)
    made.losses.image_pretrained.network = image_loss or "efficientnet_lite0"
    with made.unlocked():
        made.discriminator.type = discriminator
    return made


@pytest.mark.parametrize(
    ("made", "flattered"),
    [
        (config(), False),
        (config(image_loss="resnet50"), False),
        (config(image_loss="efficientnet_lite0"), True),
        (config(discriminator="projected"), True),
    ],
)
def test_only_the_networks_of_training_flatter(made, flattered):
    found = {name for name, protocol in PROTOCOLS.items() if flattered_by(made, protocol)}
    assert found == ({"fd-effnet-lite0"} if flattered else set())


def test_a_config_that_has_no_type_of_discriminator_is_the_papers():
    made = default_config()
    with made.unlocked():
        if "type" in made.discriminator:
            del made.discriminator.type
    made.losses.image_pretrained.enabled = False
    assert flattered_by(made, get_protocol("fd-effnet-lite0")) == ""


def test_the_table_marks_flattered_scores_alone():
    fair = Score("a/fd", 1.0, None, None, "lower")
    flattered = dataclasses.replace(fair, name="b/fd", flattered=True)
    scores = {score.name: score for score in (fair, flattered)}
    rows = score_lines([Result(1, "ema", "r", "c", scores, 1.0, 1.0)])
    assert [row[0] for row in rows if "flattered" in row[-1]] == ["b/fd"]
