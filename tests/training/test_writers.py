"""Logs hold each step once, whatever became of the process that wrote them."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from xmcgan.training.loop import open_writers
from xmcgan.training.writers import JsonLinesWriter, MultiWriter, TensorBoardWriter


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events_of(directory: Path) -> list[Event]:
    """Read event files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    events = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_scalars_are_one_object_a_line(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(3, {"g_loss": jnp.float32(1.5), "d_loss": np.float64(-2), "n": 4})
        assert lines_of(path)[0]["g_loss"] == 1.5, "a line is there as soon as it is written"
        writer.write_texts(3, {"note": "é\n"})
    first, second = lines_of(path)
    assert first.pop("time") > 1e9
    assert first == {"step": 3, "g_loss": 1.5, "d_loss": -2.0, "n": 4.0}
    assert second["note"] == "é\n"


def test_what_is_no_number_stays_valid_json_and_can_be_told_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(1, {"a": float("nan"), "b": np.inf, "c": -np.inf})

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    assert np.isnan(float(line["a"]))
    assert float(line["b"]) == np.inf


def test_a_resumed_log_holds_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        for step in range(1, 8):
            writer.write_scalars(step, {"course": 1})
    with JsonLinesWriter(path) as writer:
        writer.truncate_after(4)
        for step in range(5, 10):
            writer.write_scalars(step, {"course": 2})
    lines = lines_of(path)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["course"] for line in lines] == [1.0] * 4 + [2.0] * 5


def test_a_new_run_drops_what_a_run_without_checkpoint_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for value in (1, 2):
        with JsonLinesWriter(path) as writer:
            writer.truncate_after(0)
            writer.write_scalars(1, {"a": value})
    assert [line["a"] for line in lines_of(path)] == [2.0]


@pytest.mark.parametrize("tail", [b'{"step": 2, "ti', b'{"step": 2}', b"\0\0\0\n", b"[1]\n", b"\n"])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(1, {"a": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with JsonLinesWriter(path) as writer:
        assert path.read_bytes() == whole
        writer.write_scalars(2, {"a": 2})
    assert [line["step"] for line in lines_of(path)] == [1, 2]


def test_tensorboard_files_hold_scalars_images_texts_and_hyperparameters(tmp_path):
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    with TensorBoardWriter(tmp_path) as writer:
        writer.write_hparams({"seed": 1, "d_steps": 2})
        writer.write_scalars(7, {"loss/g": jnp.float32(0.25)})
        writer.write_images(7, {"samples": image, "one": image[:1]})
        writer.write_texts(7, {"captions": "a cat"})
    values = {v.tag: (e.step, v) for e in events_of(tmp_path) for v in e.summary.value}
    step, scalar = values["loss/g"]
    assert step == 7
    assert scalar.simple_value == 0.25
    assert values["samples_01"][1].image.height == 4
    assert "one" in values
    texts = {tag: value.tensor.string_val[0] for tag, (_, value) in values.items() if "text" in tag}
    assert any(text == b"a cat" for text in texts.values())
    assert any(b"| seed | 1 |" in text for text in texts.values())


def test_a_resumed_run_tells_tensorboard_which_steps_to_forget(tmp_path):
    with TensorBoardWriter(tmp_path, purge_step=5):
        pass
    starts = [event for event in events_of(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [5]


@pytest.mark.parametrize("image", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_images_of_another_kind_are_refused(tmp_path, image):
    with pytest.raises(ValueError, match="grid must be uint8"):
        TensorBoardWriter(tmp_path).write_images(1, {"grid": image})


def test_several_writers_get_everything(tmp_path):
    first, second = (JsonLinesWriter(tmp_path / name) for name in ("a", "b"))
    with MultiWriter([first, second]) as writer:
        writer.write_scalars(1, {"a": 1})
        writer.write_texts(1, {"b": "c"})
        writer.flush()
    assert (
        [line["step"] for line in lines_of(tmp_path / "a")]
        == [line["step"] for line in lines_of(tmp_path / "b")]
        == [1, 1]
    )


def test_a_resumed_run_goes_on_in_lines_and_events(tmp_path, tiny_config):
    for resume_step in (0, 2):
        with open_writers(tiny_config, tmp_path, resume_step) as writer:
            for step in range(resume_step + 1, resume_step + 5):
                writer.write_scalars(step, {"resumed_from": resume_step})
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["resumed_from"] for line in lines] == [0] * 2 + [2] * 4
    events = events_of(tmp_path / "tensorboard")
    assert [e.step for e in events if e.HasField("session_log")] == [1, 3]


def test_training_starts_without_tensorflow_plots_and_uploads():
    check = (
        "import sys, xmcgan.training.loop;"
        "print(sorted({'tensorflow', 'torch', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
