"""Draw images with an exported sampler; needs jax, flatbuffers, numpy, tokenizers and pillow.

python run_exported.py "a red circle" "a blue star" --seed 1      writes 0000.png, 0001.png

A folder that scripts/export.py wrote has this file; it runs without the rest of the project.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from PIL import Image
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw images with an exported sampler.")
    parser.add_argument("captions", nargs="+", metavar="CAPTION", help="a text each")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder (default: the current one)"
    )
    args = parser.parse_args()
    folder = Path(__file__).parent
    manifest = read_manifest(folder / "manifest.json")
    files = {name: checked(folder / name, sha256) for name, sha256 in manifest["files"].items()}

    sampler = export.deserialize(bytearray(files["sampler.jax_export"]))
    weights = dict(np.load(folder / "weights.npz", allow_pickle=False))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.encode_special_tokens = True  # "[SEP]" in a caption is text
    encoded = tokenizer.encode_batch(args.captions)
    token_ids = np.array([each.ids for each in encoded], np.int32)
    word_mask = np.array([each.attention_mask for each in encoded], bool)
    # The noise of scripts/generate.py with one image per caption.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(args.seed), np.arange(len(encoded))
    )
    z = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (manifest["z_dim"],)))(keys))

    args.out.mkdir(parents=True, exist_ok=True)
    size = manifest["batch_size"] or len(encoded)
    for start in range(0, len(encoded), size):
        rows = np.arange(start, start + size).clip(max=len(encoded) - 1)  # the last one fills up
        images = np.asarray(sampler.call(weights, token_ids[rows], word_mask[rows], z[rows]))
        for row, image in zip(range(start, len(encoded)), images, strict=False):
            Image.fromarray(image).save(args.out / f"{row:04d}.png")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest, or end the program where it is no JSON."""
    try:
        return json.loads(checked(path))
    except ValueError as error:
        raise SystemExit(f"error: {path} is damaged: {error}; export it again") from None


def checked(path: Path, sha256: str | None = None) -> bytes:
    """Return a file's bytes, or end the program where they are not those that were exported."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}; export the model again") from None
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise SystemExit(f"error: {path} is damaged: it is not what was exported; export it again")
    return content


if __name__ == "__main__":
    main()
