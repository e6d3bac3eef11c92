"""The workdir of a run: who holds it, and whether its files are whole."""

from collections.abc import Iterator
from pathlib import Path

from xmcgan.studies.doctor.data_sets import examine_data_set
from xmcgan.studies.doctor.findings import Finding, examine
from xmcgan.studies.doctor.installation import free_disk
from xmcgan.utils.files import lock_holder


def examine_workdir(workdir: Path) -> Iterator[Finding]:
    """Look at a run without touching it; it may be going on.

    Args:
        workdir: its folder, which exists.
    """
    yield from examine("config", lambda: _look_at_config(workdir))
    for folder, work in ((workdir, "a training run"), (workdir / "evaluation", "an evaluation")):
        if holder := lock_holder(folder):
            yield Finding("lock", f"{folder} is in use by {work}, process {holder}")
    yield from examine("checkpoints", lambda: _look_at_checkpoints(workdir))
    yield from examine("data", lambda: _look_at_data(workdir))
    yield from examine("results", lambda: _look_at_results(workdir))


def pinned_weights(workdir: Path) -> tuple[str, ...]:
    """Return the pinned weights that a run needs; none where its config cannot be read."""
    from xmcgan.config import read_config
    from xmcgan.errors import ConfigError
    from xmcgan.pretrained.weights import SOURCES

    try:
        config = read_config(workdir / "config.json")
    except ConfigError:
        return ()
    image = config.losses.image_pretrained
    names = [config.text.weights, *([image.weights or image.network] if image.enabled else [])]
    return tuple(name for name in names if name in SOURCES)


def _look_at_config(workdir: Path) -> Iterator[Finding]:
    from xmcgan.config import read_config, validate

    validate(read_config(workdir / "config.json"))
    yield Finding("config", f"{workdir / 'config.json'} is valid")


def _look_at_checkpoints(workdir: Path) -> Iterator[Finding]:
    from xmcgan.training.retention import committed_steps

    folder = workdir / "checkpoints"
    steps = committed_steps(folder)
    if not steps:
        yield Finding("checkpoints", f"none in {folder} yet")
    for step in steps:
        yield from examine("checkpoints", lambda step=step: _verified(folder, step))
    for aside in sorted(folder.glob("set-aside-*")):
        text = f"{aside} was left behind by a run that went back; delete it if it is not wanted"
        yield Finding("checkpoints", text)
    newest = sum(p.stat().st_size for p in _files(folder / str(steps[-1]))) if steps else 0
    yield free_disk(workdir, max(1e9, 2 * newest))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _verified(folder: Path, step: int) -> Iterator[Finding]:
    from xmcgan.training.checkpoint import read_record, restore_subtree

    restore_subtree(
        folder, step, sorted({n.split("/")[0] for n in read_record(folder, step).leaves})
    )
    yield Finding("checkpoints", f"step {step:,}: every array has its digest")


def _look_at_data(workdir: Path) -> Iterator[Finding]:
    from xmcgan.config import read_config
    from xmcgan.data import DataSet
    from xmcgan.training.checkpoint import read_record
    from xmcgan.training.retention import committed_steps

    data = read_config(workdir / "config.json").data
    yield from examine_data_set(data.name, Path(data.data_dir), **data.fields)
    steps = committed_steps(workdir / "checkpoints")
    stored = read_record(workdir / "checkpoints", steps[-1]).fingerprint if steps else {}
    data_set = DataSet(data.name, data.data_dir, **data.fields)
    if stored.get("data") not in (None, data_set.load(data.train_split).fingerprint()):
        text = (
            f"{data.name} in {data.data_dir} is not what this run was trained on; it will not "
            "resume unless the data are put back"
        )
        yield Finding("data", text, is_problem=True)


def _look_at_results(workdir: Path) -> Iterator[Finding]:
    from xmcgan.evaluation.results import ResultFile

    found = ResultFile(workdir / "evaluation").read()
    yield Finding("results", f"{len(found)} scores of checkpoints in {workdir / 'evaluation'}")
