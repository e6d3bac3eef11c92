"""Checkpoints restore bit for bit or name what is wrong; which ones are kept, pinned or missed."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmcgan.errors import CheckpointError
from xmcgan.training.checkpoint import (
    Checkpointer,
    committed_steps,
    pin,
    pinned_steps,
    remove_old,
    restore_subtree,
    unpin,
)
from xmcgan.utils.files import lock_workdir

FINGERPRINT = {"seed": 1, "data": {"name": "shapes", "size": [32, 32]}}


@struct.dataclass
class State:
    step: jax.Array
    g_params: dict
    g_opt_state: tuple
    rng: jax.Array


def make_state(step: int, width: int = 4) -> State:
    values = np.random.default_rng(step)
    params = {
        "dense": {
            "kernel": jnp.asarray(values.normal(size=(8, width)), jnp.float32),
            "bias": jnp.asarray(values.normal(size=(width,)), jnp.bfloat16),
        }
    }
    rng = jax.random.key_data(jax.random.key(step))
    return State(jnp.int32(step), params, optax.adam(1e-3).init(params), rng)


def abstract(state: State, sharding: jax.sharding.Sharding | None = None) -> State:
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def assert_identical(left: State, right: State) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def open_run(path: Path, keep: int = 3, fingerprint: dict | None = None) -> Checkpointer:
    return Checkpointer(path, keep=keep, fingerprint=fingerprint or FINGERPRINT)


def save_steps(path: Path, *steps: int) -> None:
    with open_run(path) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"examples_seen": 8 * step})


def restore(path: Path, step: int) -> tuple[State, dict]:
    with open_run(path) as checkpointer:
        return checkpointer.restore(step, abstract(make_state(0)))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_state_and_extra_come_back_bit_for_bit(tmp_path):
    save_steps(tmp_path, 1, 2)
    state, extra = restore(tmp_path, 2)
    assert_identical(state, make_state(2))
    assert extra == {"examples_seen": 16}
    older, _ = restore(tmp_path, 1)
    assert_identical(older, make_state(1))


def test_arrays_donated_right_after_save_are_stored_as_they_were(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        overwrite(state["w"]).block_until_ready()
        restored, _ = checkpointer.restore(1, abstract({"w": jnp.zeros(1 << 20)}))
    np.testing.assert_array_equal(restored["w"], np.arange(1 << 20, dtype=np.float32))


def test_only_the_newest_steps_and_pinned_ones_are_kept(tmp_path):
    with open_run(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        for step in (1, 2, 3, 4):
            checkpointer.save(step, make_state(step), {})
            if step == 1:
                checkpointer.wait()
                assert pin(tmp_path, 1, "evaluation")
        checkpointer.wait()
        assert committed_steps(tmp_path) == [1, 3, 4]
        assert checkpointer.latest_step() == 4
        restored, _ = checkpointer.restore(1, abstract(make_state(1)))
        assert_identical(restored, make_state(1))


@pytest.mark.mesh
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_state_saved_on_four_devices_restores_on_another_count(tmp_path, devices):
    def sharded(count):
        mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))
        return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    values = {
        "replicated": np.arange(5.0, dtype=np.float32),
        "split": np.arange(16, dtype=np.int32),
    }

    def place(count):
        whole, split = sharded(count)
        return {
            "replicated": jax.device_put(values["replicated"], whole),
            "split": jax.device_put(values["split"], split),
        }

    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, place(4), {})
    target = place(devices)
    with open_run(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(1, target)
    for name, value in values.items():
        np.testing.assert_array_equal(restored[name], value)
        assert restored[name].sharding == target[name].sharding


def test_shapes_without_placement_are_refused(tmp_path):
    save_steps(tmp_path, 1)
    shapes = jax.eval_shape(lambda: make_state(0))
    with open_run(tmp_path) as checkpointer, pytest.raises(ValueError, match="no sharding"):
        checkpointer.restore(1, shapes)


def test_a_missing_step_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(CheckpointError, match="step 7; it has none"):
        restore(tmp_path, 7)
    save_steps(tmp_path, 3)
    with pytest.raises(CheckpointError, match="step 7; it has 3"):
        restore(tmp_path, 7)


def test_flipped_bytes_in_an_array_are_reported_with_its_name(tmp_path):
    """Incompressible values, so that a flip changes values instead of breaking the compression."""
    state = {"a": jnp.zeros(4), "big": jax.random.normal(jax.random.key(0), (64, 64))}
    with open_run(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, {})
    named = 0
    content = largest_file(tmp_path / "2" / "state")
    original = content.read_bytes()
    for position in np.linspace(len(original) * 0.2, len(original) * 0.8, 8).astype(int):
        flipped = bytearray(original)
        flipped[position] ^= 0x10
        content.write_bytes(bytes(flipped))
        with open_run(tmp_path) as checkpointer, pytest.raises(CheckpointError) as caught:
            checkpointer.restore(2, abstract(state))
        message = str(caught.value)
        assert "step 2" in message
        assert "--config.restore_step=1" in message
        named += "big" in message
    assert named > 0


def test_digest_alone_finds_a_changed_value(tmp_path):
    """The record is the judge: change it consistently, and an intact array counts as damaged."""
    save_steps(tmp_path, 1)
    rewrite_record(tmp_path, lambda record: damage_digest(record, "g_params/dense/kernel"))
    with pytest.raises(CheckpointError, match="g_params/dense/kernel"):
        restore(tmp_path, 1)


def damage_digest(record: dict, name: str) -> None:
    record["leaves"][name]["digest"] = "0" * 64


def rewrite_record(path: Path, change: Callable[[dict], None]) -> None:
    """Change the record of step 1, its own digest included."""
    file = path / "1" / "record" / "record.json"
    record = json.loads(file.read_text())
    del record["digest"]
    change(record)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(record | {"digest": digest}))


def restore_or_message(path: Path) -> tuple[State, dict] | str:
    try:
        return restore(path, 2)
    except CheckpointError as error:
        return str(error)


def every_file(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


# Orbax leaves threads of a failed read behind, which complain when its event loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_damage_to_any_file_is_an_error_or_harmless_but_never_silent(tmp_path, damage):
    save_steps(tmp_path, 1, 2)
    for file in every_file(tmp_path / "2"):
        original = file.read_bytes()
        if not original:
            continue
        if damage == "delete":
            file.unlink()
        elif damage == "truncate":
            file.write_bytes(original[: len(original) // 2])
        else:
            middle = len(original) // 2
            flipped = bytes([original[middle] ^ 0xFF])
            file.write_bytes(original[:middle] + flipped + original[middle + 1 :])
        outcome = restore_or_message(tmp_path)
        if isinstance(outcome, str):
            assert "step 2 " in outcome
            assert "restore_step=1" in outcome
        else:
            assert_identical(outcome[0], make_state(2))
            assert outcome[1] == {"examples_seen": 16}
        file.write_bytes(original)
    assert_identical(restore(tmp_path, 2)[0], make_state(2))


def test_damage_without_an_older_step_says_so(tmp_path):
    save_steps(tmp_path, 5)
    (tmp_path / "5" / "record" / "record.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no older step"):
        restore(tmp_path, 5)


def test_a_changed_position_in_the_record_is_found(tmp_path):
    save_steps(tmp_path, 1)
    file = tmp_path / "1" / "record" / "record.json"
    stored = json.loads(file.read_text())
    stored["extra"]["examples_seen"] += 1
    file.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"record\.json"):
        restore(tmp_path, 1)


def test_a_checkpoint_of_version_0_1_is_read_and_named_where_it_does_not_fit(tmp_path):
    save_steps(tmp_path, 1)
    rewrite_record(tmp_path, lambda record: record.pop("version"))
    assert_identical(restore(tmp_path, 1)[0], make_state(1))
    with open_run(tmp_path) as checkpointer, pytest.raises(CheckpointError, match=r"0\.1\.0"):
        checkpointer.restore(1, abstract(make_state(0, width=6)))


def test_another_fingerprint_is_refused_with_the_differing_fields(tmp_path):
    save_steps(tmp_path, 1)
    other = {"seed": 2, "data": {"name": "shapes", "size": [32, 32]}, "width": 8}
    with open_run(tmp_path, fingerprint=other) as checkpointer:
        with pytest.raises(CheckpointError) as caught:
            checkpointer.restore(1, abstract(make_state(0)))
        assert "\n  seed: 1 -> 2\n  width: absent -> 8\n" in str(caught.value)
        assert "size" not in str(caught.value)
        state, _ = checkpointer.restore(1, abstract(make_state(0)), allow_mismatch=True)
    assert_identical(state, make_state(1))


def test_another_architecture_is_refused_with_the_differing_arrays(tmp_path):
    save_steps(tmp_path, 1)
    wanted = abstract(make_state(0, width=6))
    with (
        open_run(tmp_path) as checkpointer,
        pytest.raises(
            CheckpointError, match=r"g_params/dense/bias: bfloat16\[4\] -> bfloat16\[6\]"
        ),
    ):
        checkpointer.restore(1, wanted)


def test_another_type_is_refused_rather_than_cast(tmp_path):
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3, jnp.float32)}, {})
        with pytest.raises(CheckpointError, match=r"w: float32\[3\] -> bfloat16\[3\]"):
            checkpointer.restore(1, abstract({"w": jnp.ones(3, jnp.bfloat16)}))


def test_a_run_that_goes_back_sets_later_steps_aside(tmp_path):
    save_steps(tmp_path, 1, 2, 4)
    with open_run(tmp_path) as checkpointer:
        checkpointer.restore(1, abstract(make_state(0)))
        checkpointer.save(3, make_state(30), {})
        checkpointer.wait()
        assert committed_steps(tmp_path) == [1, 2, 3]
    assert (tmp_path / "set-aside-4" / "state").is_dir()
    assert_identical(restore(tmp_path, 3)[0], make_state(30))


def test_named_fields_are_read_as_numpy_without_the_rest(tmp_path):
    save_steps(tmp_path, 1)
    subtree = restore_subtree(tmp_path, 1, ("g_params",))
    assert set(subtree) == {"g_params"}
    kernel = subtree["g_params"]["dense"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert_identical(subtree["g_params"], make_state(1).g_params)
    with pytest.raises(CheckpointError, match=r"no ema_params; it has g_opt_state, g_params"):
        restore_subtree(tmp_path, 1, ("ema_params",))


def test_a_full_disk_is_loud_and_leaves_the_older_step_newest(tmp_path):
    run = """
        import resource, signal, sys
        from pathlib import Path
        import jax.numpy as jnp, numpy as np
        from xmcgan.errors import CheckpointError
        from xmcgan.training.checkpoint import Checkpointer, committed_steps

        noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
        with Checkpointer(Path(sys.argv[1]), keep=2, fingerprint={}) as checkpointer:
            checkpointer.save(1, {"w": jnp.asarray(noise)}, {})
            checkpointer.wait()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
            checkpointer.save(2, {"w": jnp.asarray(noise + 1)}, {})
            try:
                checkpointer.wait()
            except CheckpointError as error:
                print(error)
            print("latest", checkpointer.latest_step())
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            checkpointer.save(3, {"w": jnp.asarray(noise + 2)}, {})
        print("after", committed_steps(Path(sys.argv[1])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(run), tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 2 could not be saved" in done.stdout
    assert "Complete steps: 1." in done.stdout
    assert "latest 1" in done.stdout
    assert "after [1, 3]" in done.stdout


SAVING_FOREVER = """
    import sys
    from pathlib import Path
    import numpy as np
    from xmcgan.training.checkpoint import Checkpointer

    checkpointer = Checkpointer(Path(sys.argv[1]), keep=2, fingerprint={})
    first = (checkpointer.latest_step() or 0) + 1
    for step in range(first, first + 10_000):
        state = {f"w{i}": np.full((128, 128), step + i, np.float32) for i in range(20)}
        checkpointer.save(step, state, {"step": step})
        print(step, flush=True)
"""


def test_sigkill_while_saving_leaves_a_whole_step_and_no_leftovers(tmp_path):
    delays = random.Random(7)
    reached = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVING_FOREVER), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(delays.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        (tmp_path / ".newest.1.tmp").touch()  # as where its note was under way
        shapes = {f"w{i}": jnp.zeros((128, 128)) for i in range(20)}
        with Checkpointer(tmp_path, keep=2, fingerprint={}) as checkpointer:
            latest = checkpointer.latest_step()
            assert latest is not None
            state, extra = checkpointer.restore(latest, abstract(shapes))
        assert latest >= reached + 2
        assert extra == {"step": latest}
        for i in range(20):
            np.testing.assert_array_equal(state[f"w{i}"], np.float32(latest + i))
        names = {path.name for path in tmp_path.iterdir()} - {"pins", "newest"}
        assert all(name.isdigit() for name in names)
        reached = latest


def test_a_newest_step_that_is_gone_is_missed_and_never_taken_for_a_fresh_start(tmp_path):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2")
    with (
        open_run(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match=r"step 2 (.|\n)*restore_step=1"),
    ):
        checkpointer.latest_step()
    shutil.rmtree(tmp_path / "1")
    with (
        open_run(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match=r"step 2 (.|\n)*--workdir"),
    ):
        checkpointer.latest_step()


def test_a_run_that_went_back_and_was_killed_is_not_missed_a_step(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step, latest in ((2, 1), (1, None)):
        with open_run(tmp_path) as checkpointer:
            checkpointer._set_aside_from(step)  # what a save of this step does first
            assert checkpointer.latest_step() == latest


def make_empty_steps(directory: Path, *steps: int) -> None:
    for step in steps:
        (directory / str(step) / "state").mkdir(parents=True)


def test_the_newest_stay_and_older_ones_go(tmp_path):
    make_empty_steps(tmp_path, 1, 20, 3, 100)
    remove_old(tmp_path, keep=2)
    assert committed_steps(tmp_path) == [20, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "20", "pins"]


def test_a_pinned_step_stays_until_its_last_pin_is_gone(tmp_path):
    make_empty_steps(tmp_path, 1, 2, 3)
    assert pin(tmp_path, 1, "evaluation")
    assert pin(tmp_path, 1, "best")
    remove_old(tmp_path, keep=1)
    unpin(tmp_path, 1, "evaluation")
    remove_old(tmp_path, keep=1)
    assert committed_steps(tmp_path) == [1, 3]
    assert pinned_steps(tmp_path) == pinned_steps(tmp_path, "best") == {1}
    assert pinned_steps(tmp_path, "evaluation") == set()
    unpin(tmp_path, 1, "best")
    remove_old(tmp_path, keep=1)
    assert committed_steps(tmp_path) == [3]


def test_a_step_that_is_gone_cannot_be_pinned(tmp_path):
    make_empty_steps(tmp_path, 1)
    assert not pin(tmp_path, 2, "evaluation")
    assert pinned_steps(tmp_path) == set()


def test_pinning_while_another_removes_never_loses_a_pinned_step(tmp_path):
    # Locks are of open files: two threads exclude each other as two processes do.
    steps = list(range(1, 200))
    make_empty_steps(tmp_path, *steps)
    pinned: list[int] = []

    def pin_all() -> None:
        pinned.extend(s for s in steps[::-1] if pin(tmp_path, s, "evaluation"))

    other = threading.Thread(target=pin_all)
    other.start()
    for keep in range(150, 0, -10):
        remove_old(tmp_path, keep)
    other.join()
    assert set(pinned) <= set(committed_steps(tmp_path))


def test_a_second_process_is_refused_with_the_holders_id(tmp_path):
    run = """
        import sys
        from pathlib import Path
        from xmcgan.utils.files import lock_workdir
        with lock_workdir(Path(sys.argv[1])):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(run), tmp_path]
    with lock_workdir(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert f"in use by process {os.getpid()}" in refused.stderr
    subprocess.run(command, check=True)
