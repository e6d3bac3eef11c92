"""The layers of Inception-v3 as a table, which its module and the reader of its weights share.

Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016. Names are those of the file of
2015; the order is that in which keras.applications creates its layers, and thereby numbers them.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

Variant = Literal["2015", "keras"]


class Unit(NamedTuple):
    """Describe a convolution with its batch norm and ReLU."""

    name: str
    kernel: tuple[int, int]
    width: int
    stride: int = 1
    padding: str = "SAME"


Step = tuple[Unit, ...]


class BlockSpec(NamedTuple):
    """Describe a block: branches that read the same input, joined along the channels.

    Attributes:
        name: of the block.
        branches: each a chain of steps; the units of one step read the same input, and their
            outputs are joined.
        pool: the 3x3 pooling of the last branch; "stride" is the maximum at every second position.
        pool_unit: what follows the pooling, if anything does.
    """

    name: str
    branches: tuple[tuple[Step, ...], ...]
    pool: Literal["average", "max", "stride"]
    pool_unit: Unit | None = None

    def merged(self) -> tuple[Unit, ...]:
        """Return the 1x1 units of the block's input, which are computed as one convolution.

        The unit after an average pooling is one of them: a 1x1 convolution commutes with the mean
        of positions, and its bias is its own mean.
        """
        units = [unit for branch in self.branches for unit in branch[0] if unit.kernel == (1, 1)]
        if self.pool == "average" and self.pool_unit is not None:
            units.append(self.pool_unit)
        return tuple(units)


class Layer(NamedTuple):
    """Say where a unit stands (None: before the blocks) and what kernel it has."""

    block: str | None
    unit: Unit
    kernel_shape: tuple[int, int, int, int]


# The units before the blocks; a maximum of every second 3x3 follows each group.
STEM = (
    (
        Unit("Conv2d_1a_3x3", (3, 3), 32, 2, "VALID"),
        Unit("Conv2d_2a_3x3", (3, 3), 32, 1, "VALID"),
        Unit("Conv2d_2b_3x3", (3, 3), 64),
    ),
    (
        Unit("Conv2d_3b_1x1", (1, 1), 80),
        Unit("Conv2d_4a_3x3", (3, 3), 192, 1, "VALID"),
    ),
)


def block_specs(variant: Variant) -> tuple[BlockSpec, ...]:
    """Return the network's blocks in order.

    The variants differ in the last one: the graph of 2015 takes a maximum there, against the paper.
    """
    return (
        _block_a("Mixed_5b", 32),
        _block_a("Mixed_5c", 64),
        _block_a("Mixed_5d", 64),
        _block_b("Mixed_6a"),
        _block_c("Mixed_6b", 128),
        _block_c("Mixed_6c", 160),
        _block_c("Mixed_6d", 160),
        _block_c("Mixed_6e", 192),
        _block_d("Mixed_7a"),
        _block_e("Mixed_7b", "average"),
        _block_e("Mixed_7c", "max" if variant == "2015" else "average"),
    )


def layers(variant: Variant) -> Iterator[Layer]:
    """Yield all units in the order of their creation."""
    inputs = 3
    for unit in (unit for group in STEM for unit in group):
        yield Layer(None, unit, (*unit.kernel, inputs, unit.width))
        inputs = unit.width
    for spec in block_specs(variant):
        outputs = 0
        for branch in spec.branches:
            width = inputs
            for step in branch:
                for unit in step:
                    yield Layer(spec.name, unit, (*unit.kernel, width, unit.width))
                width = sum(unit.width for unit in step)
            outputs += width
        if spec.pool_unit is None:
            outputs += inputs
        else:
            yield Layer(spec.name, spec.pool_unit, (1, 1, inputs, spec.pool_unit.width))
            outputs += spec.pool_unit.width
        inputs = outputs


def _chain(*units: Unit) -> tuple[Step, ...]:
    return tuple((unit,) for unit in units)


def _pool_unit(width: int) -> Unit:
    return Unit("branch_pool", (1, 1), width)


def _block_a(name: str, pool_width: int) -> BlockSpec:
    branches = (
        _chain(Unit("branch1x1", (1, 1), 64)),
        _chain(Unit("branch5x5_1", (1, 1), 48), Unit("branch5x5_2", (5, 5), 64)),
        _chain(
            Unit("branch3x3dbl_1", (1, 1), 64),
            Unit("branch3x3dbl_2", (3, 3), 96),
            Unit("branch3x3dbl_3", (3, 3), 96),
        ),
    )
    return BlockSpec(name, branches, "average", _pool_unit(pool_width))


def _block_b(name: str) -> BlockSpec:
    branches = (
        _chain(Unit("branch3x3", (3, 3), 384, 2, "VALID")),
        _chain(
            Unit("branch3x3dbl_1", (1, 1), 64),
            Unit("branch3x3dbl_2", (3, 3), 96),
            Unit("branch3x3dbl_3", (3, 3), 96, 2, "VALID"),
        ),
    )
    return BlockSpec(name, branches, "stride")


def _block_c(name: str, width: int) -> BlockSpec:
    branches = (
        _chain(Unit("branch1x1", (1, 1), 192)),
        _chain(
            Unit("branch7x7_1", (1, 1), width),
            Unit("branch7x7_2", (1, 7), width),
            Unit("branch7x7_3", (7, 1), 192),
        ),
        _chain(
            Unit("branch7x7dbl_1", (1, 1), width),
            Unit("branch7x7dbl_2", (7, 1), width),
            Unit("branch7x7dbl_3", (1, 7), width),
            Unit("branch7x7dbl_4", (7, 1), width),
            Unit("branch7x7dbl_5", (1, 7), 192),
        ),
    )
    return BlockSpec(name, branches, "average", _pool_unit(192))


def _block_d(name: str) -> BlockSpec:
    branches = (
        _chain(
            Unit("branch3x3_1", (1, 1), 192),
            Unit("branch3x3_2", (3, 3), 320, 2, "VALID"),
        ),
        _chain(
            Unit("branch7x7x3_1", (1, 1), 192),
            Unit("branch7x7x3_2", (1, 7), 192),
            Unit("branch7x7x3_3", (7, 1), 192),
            Unit("branch7x7x3_4", (3, 3), 192, 2, "VALID"),
        ),
    )
    return BlockSpec(name, branches, "stride")


def _block_e(name: str, pool: Literal["average", "max"]) -> BlockSpec:
    branches = (
        _chain(Unit("branch1x1", (1, 1), 320)),
        (
            (Unit("branch3x3_1", (1, 1), 384),),
            (Unit("branch3x3_2a", (1, 3), 384), Unit("branch3x3_2b", (3, 1), 384)),
        ),
        (
            (Unit("branch3x3dbl_1", (1, 1), 448),),
            (Unit("branch3x3dbl_2", (3, 3), 384),),
            (Unit("branch3x3dbl_3a", (1, 3), 384), Unit("branch3x3dbl_3b", (3, 1), 384)),
        ),
    )
    return BlockSpec(name, branches, pool, _pool_unit(192))
