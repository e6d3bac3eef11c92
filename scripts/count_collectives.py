"""Count what a training step sends between devices, from its compiled program.

python scripts/count_collectives.py --config coco:128 --devices 64 \\
    --batch-size 512

Compiles for simulated CPU devices, with shapes alone: it needs neither the
devices nor the memory, data or weights. The frozen networks are left out: they
send nothing, but for the features of the frozen image network where its loss is
on.
"""

import argparse
import dataclasses
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xmcgan.config import apply_override, check_devices, load_config, validate
from xmcgan.errors import run_cli
from xmcgan.losses import build_losses
from xmcgan.training import build
from xmcgan.training.state import create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils.mesh import batch_sharding, make_mesh, replicated, state_sharding

WORD_DIM = 384  # MiniLM's; BERT-base has 768
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)|calls=\{([^}]*)\}")
_CALLS = re.compile(r"\b(?:call|fusion|while|conditional)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The three ways to write which devices take part: of a mesh, as a grid of groups, or as lists.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)+)? \{([^}]*)\}")
_GRID_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: Such as "all-reduce".
        shapes: Of its results on one device, such as ((64, 96),); several if XLA joined them.
        num_bytes: Size of these results.
        group: Number of devices that take part.
        times: How often it runs, more than once inside a loop.
        name: The operation of the model that it comes from.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    group: int
    times: int
    name: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a ring: the usual algorithm, and the minimum."""
        share = (self.group - 1) / self.group
        factor = {
            "all-reduce": 2 * share,
            "all-gather": share,
            "all-to-all": share,
            "reduce-scatter": self.group - 1,
            "collective-permute": 1,
        }[self.kind]
        return self.times * factor * self.num_bytes


def find_collectives(program: str) -> list[Collective]:
    """Return the collectives in `compiled.as_text()`, loops counted as often as they run.

    Raises:
        ValueError: A collective is in a loop of unknown length.
    """
    bodies = dict(_computations(program))
    (entry,) = (name for name, lines in bodies.items() if lines[0].startswith("ENTRY"))
    return list(_walk(bodies, entry, 1))


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in program.splitlines():
        if not line.startswith(" ") and (found := _COMPUTATION.match(line.strip())):
            name, lines = found[1], [line]
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _walk(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies[name]:
        if found := _INSTRUCTION.search(line):
            yield _parse(line, found, times)
        elif _CALLS.search(line):
            trips = _TRIPS.search(line)
            is_loop = " while(" in line
            for called in _CALLED.finditer(line):
                for inner in (called[1] or called[2] or "").replace("%", "").split(", "):
                    inside = list(_walk(bodies, inner, times)) if inner in bodies else []
                    if inside and is_loop and trips is None:
                        raise ValueError(f"a collective in a loop of unknown length: {line}")
                    count = int(trips[1]) if is_loop and trips else 1
                    yield from (dataclasses.replace(c, times=c.times * count) for c in inside)


def _parse(line: str, found: re.Match[str], times: int) -> Collective:
    arrays = [(m[1], m[2], m[3]) for m in _ARRAY.finditer(found[1])]
    shapes = tuple(tuple(map(int, filter(None, dims.split(",")))) for _, _, dims in arrays)
    num_bytes = sum(
        math.prod(shape) * (1 if kind == "pred" else int(bits) // 8)
        for (kind, bits, _), shape in zip(arrays, shapes, strict=True)
    )
    name = re.search(r'op_name="([^"]*)"', line)
    title = name[1] if name else ""
    return Collective(found[2], shapes, num_bytes, _group_size(line), times, title)


def _group_size(line: str) -> int:
    if found := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        size = 1
        for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]):
            size *= int(part or sizes[axis])
        return size
    if found := _GRID_GROUPS.search(line):
        return int(found[1])
    if found := _LISTED_GROUPS.search(line):
        return len(found[1].split(","))
    if _PAIRS.search(line):
        return 2
    raise ValueError(f"a collective that does not say who takes part: {line}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME[:VARIANT]", help="such as coco:128"
    )
    parser.add_argument(
        "--devices", type=int, default=8, metavar="N", help="simulated (default: 8)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="of all devices (default: the config's)"
    )
    parser.add_argument(
        "--fsdp",
        type=int,
        default=1,
        metavar="N",
        help="devices that share one copy of a state (default: 1)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config"
    )
    return parser.parse_args()


def simulate_devices(count: int) -> None:
    """Give this process so many CPU devices; machine code is not optimized, it never runs."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"


def compile_step(config: ConfigDict, fsdp: int) -> tuple[str, Any]:
    """Return the text of the compiled step, and the shapes of its state."""
    mesh = make_mesh(fsdp=fsdp)
    networks = build.build_networks(config, WORD_DIM)
    tokens = config.text.max_tokens
    state = jax.eval_shape(
        partial(
            create_state, networks, max_tokens=tokens, word_dim=WORD_DIM, sentence_dim=WORD_DIM
        ),
        jax.random.key(0),
    )
    parts = (config.d_steps, config.batch_size)
    batch = {
        "image": jax.ShapeDtypeStruct((*parts, *[config.image_size] * 2, 3), jnp.uint8),
        "token_ids": jax.ShapeDtypeStruct((*parts, tokens), jnp.int32),
        "word_mask": jax.ShapeDtypeStruct((*parts, tokens), jnp.bool),
    }

    def encode_text(table: jax.Array, token_ids: jax.Array, mask: jax.Array) -> Any:
        words = table[token_ids]
        return words, jnp.mean(words, axis=1)

    placed = state_sharding(mesh, state)
    step_fn = jax.jit(
        make_train_step(networks, FrozenNetworks(encode_text), build_losses(config), config),
        in_shardings=(placed, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
    )
    frozen = {"text": jax.ShapeDtypeStruct((1000, WORD_DIM), jnp.float32)}
    return step_fn.lower(state, frozen, batch).compile().as_text() or "", state


def describe(collectives: list[Collective], state: Any) -> str:
    """Return a table: for each kind how many, what they hold, and what a device sends."""
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for collective in collectives:
        for kind in (collective.kind, "all"):
            rows[kind][0] += collective.times
            rows[kind][1] += collective.times * collective.num_bytes / 1e6
            rows[kind][2] += collective.sent_bytes / 1e6
    lines = [f"{'kind':20}{'number':>8}{'holds MB':>12}{'sends MB':>12}"]
    lines += [f"{k:20}{n:8.0f}{held:12.2f}{sent:12.2f}" for k, (n, held, sent) in rows.items()]
    for name in ("g_params", "d_params"):
        size = sum(leaf.size * 4 for leaf in jax.tree.leaves(getattr(state, name)))
        lines.append(f"{name}: {size / 1e6:.2f} MB")
    largest = sorted(collectives, key=lambda c: -c.times * c.num_bytes)[:8]
    lines += [
        f"{c.kind} {c.times} x {c.num_bytes:,} bytes {c.shapes[:2]} {c.name[-60:]}" for c in largest
    ]
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    simulate_devices(args.devices)
    config = load_config(args.config)
    config.losses.image_pretrained.enabled = False
    for override in args.set:
        apply_override(config, override)
    if args.batch_size:
        config.batch_size = args.batch_size
    validate(config)
    check_devices(config, args.devices)
    program, state = compile_step(config, args.fsdp)
    print(describe(find_collectives(program), state))


if __name__ == "__main__":
    run_cli(main)
