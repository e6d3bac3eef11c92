"""Count what a training step sends between devices, from its compiled program.

python scripts/count_collectives.py --config coco:128 --devices 64 \\
    --batch-size 512

Compiles for simulated CPU devices, with shapes alone: it needs neither the
devices nor the memory, data or weights. The frozen networks are left out: they
send nothing, but for the features of the frozen image network where its loss is
on.
"""

import argparse
import os
from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xmcgan import build
from xmcgan.benchmarks.collectives import Collective, find_collectives
from xmcgan.config import apply_override, check_devices, load_config, validate
from xmcgan.errors import run_cli
from xmcgan.training.state import create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils.mesh import batch_sharding, make_mesh, replicated, state_sharding

WORD_DIM = 384  # MiniLM's; BERT-base has 768


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
    """Give this process so many CPU devices; machine code is not optimised, it never runs."""
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
    parts = (config.d_steps * config.num_microbatches, config.batch_size // config.num_microbatches)
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
        make_train_step(networks, FrozenNetworks(encode_text), config),
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
