"""Generator and discriminators, found by the name in the config or by `module:Class`.

A network is a Flax module. Its fields come from `config.generator` or `config.discriminator`, and,
if it has them, `image_size`, `region_size` (of the generator: `condition_size`), `region_dim`,
`batch_norm_group_size`, `dtype` and `remat` from the rest of the config.
"""

GENERATORS = {"paper": "xmcgan.models.generator:Generator"}
DISCRIMINATORS = {
    "paper": "xmcgan.models.discriminator:Discriminator",
    "projected": "xmcgan.models.projected:ProjectedDiscriminator",
}
