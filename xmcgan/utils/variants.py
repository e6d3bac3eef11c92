"""Variants of a config: what may follow the colon of `--config NAME:variant`."""

from ml_collections import ConfigDict

from xmcgan.config import LOSSES
from xmcgan.errors import ConfigError, did_you_mean

# The names of the paper's ablation table.
ABLATION_NAMES = {
    "sentence": "sentence",
    "word": "word",
    "image": "image_discriminator",
    "pretrained": "image_pretrained",
}


def parse_variant(
    variant: str,
    *,
    sizes: tuple[int, ...],
    names: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> ConfigDict:
    """Read a variant such as `64`, `quickstart` or `64,ablation=sentence+word`; may be empty.

    It may have image sizes, plain names and options `NAME=VALUE`. Returns `size` (int or None),
    `names`, `ablation` (losses to keep beside the hinge, or None), and each option (maybe empty).
    """
    parsed = ConfigDict({"size": None, "names": [], "ablation": None})
    parsed.update(dict.fromkeys(options, ""))
    for item in filter(None, variant.split(",")):
        key, equals, value = item.partition("=")
        if item in map(str, sizes):
            parsed.size = int(item)
        elif item in names:
            parsed.names = [*parsed.names, item]
        elif key == "ablation" and equals:
            parsed.ablation = _parse_ablation(value)
        elif key in options and value:
            parsed[key] = value
        else:
            known = [*map(str, sizes), *names, "ablation=LOSS+LOSS", *(f"{o}=..." for o in options)]
            hint = did_you_mean(item, known)
            raise ConfigError(f"unknown variant {item!r}. Known: {', '.join(known)}{hint}")
    return parsed


def _parse_ablation(text: str) -> list[str]:
    parts = [] if text == "none" else text.split("+")
    for part in parts:
        if part not in ABLATION_NAMES:
            known = [*ABLATION_NAMES, "none"]
            hint = did_you_mean(part, known)
            raise ConfigError(
                f"unknown loss {part!r} in ablation={text}. Known: {', '.join(known)}{hint}"
            )
    return [ABLATION_NAMES[part] for part in parts]


def apply_ablation(config: ConfigDict, keep: list[str] | None) -> None:
    """Switch on the contrastive losses in `keep` and off all others; None changes nothing."""
    if keep is not None:
        for name in set(LOSSES) - {"hinge"}:
            config.losses[name].enabled = name in keep


def use_projected(config: ConfigDict) -> None:
    """Put the projected discriminator in the paper's place, with a slow D and a fast G.

    Beyond the paper, see docs/paper_map.md; docs/recipes.md has the runs behind the values.
    """
    config.discriminator.type = "projected"
    config.discriminator.width = 8
    config.discriminator.learning_rate = 2e-4
    config.generator.learning_rate = 1e-3
    for name in ("sentence", "word", "image_discriminator"):
        config.losses[name].weight = 0.5
