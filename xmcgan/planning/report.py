"""A plan of a config for a target: figures, what bounds them, how long a run takes."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from xmcgan.data.pipeline import num_steps
from xmcgan.errors import ConfigError, TrainingError
from xmcgan.planning.program import Program, compile_step
from xmcgan.planning.targets import GB, Target
from xmcgan.utils.files import write_text

# Training images (or narratives) of data sets whose size is known without them.
_EXAMPLES = {
    "coco": 82_783, "ln_coco": 134_272, "ln_open_images": 507_444, "shapes": 20_000, "emoji": 3_463,
}  # fmt: skip
# Share of the arithmetic peak that a step is assumed to reach where the compiler gives no time.
_REACHED = 0.4
_MOST_TRIALS = 6  # compilations of a search for the largest batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled step and what follows for a run."""

    config: ConfigDict
    target: Target
    program: Program
    num_examples: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether arguments and temporaries fit the device's memory; None if that is unknown."""
        memory = self.target.chip.memory
        return self.program.peak <= memory if memory else None

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that arithmetic, memory and links need at least, at their published rates."""
        chip, program = self.target.chip, self.program
        sent = sum(sent for _, _, sent in program.collectives.values())
        parts = {
            "arithmetic": (program.flops, chip.peak),
            "memory": (program.accessed, chip.bandwidth),
            "links": (sent, chip.links),
        }
        return {name: work / rate for name, (work, rate) in parts.items() if work and rate}

    @property
    def seconds(self) -> float | None:
        """Modeled seconds per step: the compiler's, or else arithmetic at a share of the peak."""
        if self.program.seconds:
            return self.program.seconds + self.bounds.get("links", 0.0)
        bounds = self.bounds
        if "arithmetic" not in bounds:
            return None
        slowest = max(bounds["arithmetic"] / _REACHED, bounds.get("memory", 0.0))
        return slowest + bounds.get("links", 0.0)

    @property
    def steps(self) -> int | None:
        """Steps of the config's length."""
        config, examples = self.config, self.num_examples
        examples = examples or _EXAMPLES.get(config.data.name.partition("/")[0])
        if config.num_train_steps or not examples:
            return config.num_train_steps or None
        return num_steps(config.num_epochs, examples, config.batch_size, config.d_steps)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; bytes, seconds and FLOP of one device and step."""
        return {
            "target": self.target.name,
            "devices": len(self.target.devices),
            "hosts": self.target.num_hosts,
            "batch_size": self.config.batch_size,
            **dataclasses.asdict(self.program),
            "peak": self.program.peak,
            "memory": self.target.chip.memory or None,
            "fits": self.fits,
            "bounds": self.bounds,
            "modeled_seconds": self.seconds,
            "steps": self.steps,
        }

    def rows(self) -> list[tuple[str, str]]:
        """What a person wants to know, as (name, text)."""
        program, chip = self.program, self.target.chip
        devices, batch = len(self.target.devices), self.config.batch_size
        per_device = batch / devices
        rows = [
            ("devices", f"{devices} on {self.target.num_hosts} hosts"),
            ("batch", f"{batch}, {per_device:g} per device"),
            (
                "memory per device",
                f"{program.arguments / GB:.2f} GB arguments + {program.temporaries / GB:.2f} GB "
                f"temporaries = {program.peak / GB:.2f} GB{self._of_memory()}",
            ),
        ]
        if program.flops:
            rows.append(("work per image", f"{program.flops / per_device / 1e9:.0f} GFLOP"))
        if program.accessed:
            rows.append(("bytes per image", f"{program.accessed / per_device / GB:.2f} GB"))
        for kind, (times, size, sent) in program.collectives.items():
            rows.append(
                (
                    kind,
                    f"{times} x, holds {size / 1e6:,.0f} MB, a device sends {sent / 1e6:,.0f} MB",
                )
            )
        if "arithmetic" in (bounds := self.bounds):
            most = max(bounds, key=lambda name: bounds[name])
            parts = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in bounds.items())
            rows.append(("bound by", f"{most} ({parts} at published rates)"))
        if program.measured:
            rate = batch / program.measured
            rows.append(
                ("step (measured)", f"{1e3 * program.measured:.1f} ms, {rate:,.0f} images/s")
            )
        if self.seconds:
            assumed = f"{_REACHED:.0%} of the arithmetic peak and links"
            how = "the compiler and links" if program.seconds else assumed
            rate = batch / self.seconds
            rows.append(
                ("step (modeled)", f"{1e3 * self.seconds:.1f} ms by {how}, {rate:,.0f} images/s")
            )
            if self.steps:
                hours = self.steps * self.seconds / 3600
                rows.append(
                    (
                        "run (modeled)",
                        f"{self.steps:,} steps, {hours:,.1f} h, {hours * devices:,.0f} chip-hours",
                    )
                )
        return rows if chip.platform != "cpu" else [row for row in rows if "modeled" not in row[0]]

    def _of_memory(self) -> str:
        memory = self.target.chip.memory
        if not memory:
            return ""
        over = (self.program.peak - memory) / GB
        if over <= 0:
            return f" of {memory / GB:.0f}: fits"
        return (
            f" of {memory / GB:.0f}: does NOT fit, by {over:.2f} GB; try a smaller batch_size, "
            "more devices, remat=convolutions or blocks, mesh.fsdp, or num_microbatches with "
            "batch_norm_group_size"
        )


def make_plan(
    config: ConfigDict,
    target: Target,
    *,
    frozen: bool = True,
    measure: bool = False,
    num_examples: int | None = None,
    cache: Path | None = None,
) -> Plan:
    """Compile a config for a target, or read what an equal compilation gave.

    Args:
        frozen: Whether text encoder and frozen image network are part of it.
        measure: Whether to run the step on the target, which must be here.
        num_examples: Training images, for the length of a run; None if the data set is known.
        cache: Folder of results; None keeps none.
    """
    path = cache / f"{_key(config, target, frozen)}.json" if cache else None
    if path and path.is_file():
        stored = json.loads(path.read_text("utf-8"))
        stored["collectives"] = {k: tuple(v) for k, v in stored["collectives"].items()}
        program = Program(**stored)
    else:
        program = compile_step(config.copy_and_resolve_references(), target, frozen, measure)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(dataclasses.asdict(program)))
    return Plan(config, target, program, num_examples)


def _key(config: ConfigDict, target: Target, frozen: bool) -> str:
    """Digest of all that a compilation depends on: config, target, sources, compiler, effort."""
    package = Path(__file__).parents[1]
    rooms = ("models", "losses", "training", "pretrained", "planning")
    sources = [
        path.read_bytes() for room in rooms for path in sorted((package / room).glob("*.py"))
    ]
    compiler = getattr(target.devices[0].client, "platform_version", "")
    effort = jax.config.values.get("jax_optimization_level")
    what = [config.to_dict(), target.name, frozen, jax.__version__, str(compiler), effort]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for source in sources:
        digest.update(source)
    return digest.hexdigest()[:24]


def largest_batch(config: ConfigDict, target: Target, **options: Any) -> Plan:
    """The plan of the largest batch that fits, found by secants: memory grows nearly linearly.

    Raises:
        ConfigError: The target's memory is not known, or one image per device does not fit.
    """
    memory, devices = target.chip.memory, len(target.devices)
    if not memory:
        raise ConfigError(f"--largest-batch: the memory of {target.name} is not known")

    def plan(per_device: int) -> Plan:
        sized = config.copy_and_resolve_references()
        sized.batch_size = per_device * devices
        return make_plan(sized, target, **options)

    def peak(per_device: int) -> float:
        try:
            plans[per_device] = plan(per_device)
        except TrainingError:  # a compiler that refuses what does not fit
            return float("inf")
        return plans[per_device].program.peak

    plans: dict[int, Plan] = {}
    low, high, trial = 0, 0, max(config.batch_size // devices, 2)
    peaks: dict[int, float] = {}
    for _ in range(_MOST_TRIALS):
        peaks[trial] = peak(trial)
        if peaks[trial] <= memory:
            low = trial
        else:
            high = trial
        if high and high - low <= max(1, low // 16):
            break
        known = sorted(size for size, value in peaks.items() if value < float("inf"))
        if len(known) >= 2:
            a, b = known[-2:]
            slope = max((peaks[b] - peaks[a]) / (b - a), 1.0)
            trial = int(a + (memory - peaks[a]) / slope)
        else:
            trial = 2 * trial if not high else (low + high) // 2
        trial = max(trial, low + 1)
        if high:
            trial = min(trial, high - 1)
        if trial in peaks or trial < 1:
            break
    if not low:
        raise ConfigError(f"{target.name}: not even {high} images per device fit")
    return plans[low]
