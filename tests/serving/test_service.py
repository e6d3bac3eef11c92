"""The service: its answers are those of the sampler, bounded, in order, and repeatable."""

import base64
import io
import json
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install -r requirements-demo.txt")
from starlette.testclient import TestClient

from xmcgan.sampling.sampler import TrainedModel, sample_noise
from xmcgan.serving import models as models_module
from xmcgan.serving.batching import BatchQueue, QueueFull
from xmcgan.serving.models import Models
from xmcgan.serving.routes import WAITING, Service, make_app


@contextmanager
def serving(*names, **options):
    with TestClient(make_app(Service(Models([*map(str, names)], **options)))) as client:
        yield client


@pytest.fixture(scope="module")
def client(tiny_workdir):
    with serving(tiny_workdir, "nothere") as client:
        yield client


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def images(response):
    assert response.status_code == 200, response.text
    return np.stack([pixels(base64.b64decode(image)) for image in response.json()["images"]])


def generate(client, *captions, **fields):
    return client.post("/generate", json={"captions": captions, **fields})


def refused(response, status, words):
    assert response.status_code == status
    assert words in response.json()["error"]


def test_images_and_manifest_are_those_of_generate_py(client, tiny_workdir, run, tmp_path):
    fields = {"seed": 7, "num": 2, "truncation": 0.5, "weights": "raw", "step": 3}
    response = generate(client, "a red circle", "a star", format="zip", **fields)
    captions = ("--caption", "a red circle", "--caption", "a star")
    flags = ("--seed", 7, "--num", 2, "--truncation", 0.5, "--raw", "--step", 3)
    out = tmp_path / "out"
    status, _, _ = run(
        "scripts/generate.py", "--workdir", tiny_workdir, *captions, *flags, "--out", out
    )
    assert status == 0
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        names = {path.name for path in out.iterdir()}
        assert set(archive.namelist()) == names
        for name in names - {"manifest.json"}:
            assert archive.read(name) == (out / name).read_bytes()
        manifest = json.loads(archive.read("manifest.json"))
    expected = json.loads((out / "manifest.json").read_text())
    expected.pop("workdir")  # of this machine
    assert manifest == {"model": "workdir"} | expected


def test_a_png_is_the_grid(client):
    response = generate(client, "a red circle", num=8, format="png")
    assert response.headers["content-type"] == "image/png"
    assert pixels(response.content).ndim == 3


@pytest.mark.parametrize("format", ["json", "png", "zip"])
def test_the_same_request_gives_the_same_bytes_alone_and_among_others(client, format):
    alone = generate(client, "a red circle", num=3, format=format).content
    with ThreadPoolExecutor(8) as pool:
        others = [
            pool.submit(generate, client, f"a star {i}", seed=i, num=1 + i % 4) for i in range(8)
        ]
        again = generate(client, "a red circle", num=3, format=format).content
        assert all(other.result().status_code == 200 for other in others)
    assert again == alone


def test_answers_of_concurrent_clients_are_their_own(client, tiny_workdir):
    model = TrainedModel.from_workdir(tiny_workdir)
    colors = ("red", "green", "blue")
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(
                lambda i: images(generate(client, f"a {colors[i % 3]} circle", seed=i)), range(12)
            )
        )
    for i, answer in enumerate(answers):
        expected = model([f"a {colors[i % 3]} circle"], sample_noise(i, 1, 4))
        np.testing.assert_array_equal(answer, expected)


def test_ways_begin_and_end_where_they_should(client):
    for end in ("a blue star", "a red circle"):
        body = {"captions": ["a red circle", end], "seed": 1, "end_seed": 2}
        way = images(client.post("/between", json=body)).astype(int)
        for frame, caption, seed in ((0, "a red circle", 1), (-1, end, 2)):
            expected = images(generate(client, caption, seed=seed))[0].astype(int)
            assert np.abs(way[frame] - expected).max() <= 1  # another order of sums
    gif = client.post("/between", json={**body, "format": "gif"})
    assert Image.open(io.BytesIO(gif.content)).n_frames == 30  # 16, and 14 on the way back


def test_attention_has_a_map_per_word(client):
    answer = client.post("/attention", json={"captions": ["a red circle"]}).json()
    assert answer["words"] == ["[CLS]", "a", "red", "circle", "[SEP]"]
    assert np.asarray(answer["maps"]).sum(axis=0) == pytest.approx(1, abs=1e-3)


HOSTILE = [
    ({"captions": [""]}, "caption 1 is empty"),
    ({"captions": ["a", " \n"]}, "caption 2 is empty"),
    ({"captions": []}, "list of 1 to 16"),
    ({"captions": "a star"}, "list of 1 to 16"),
    ({"captions": [3]}, "empty"),
    ({"captions": ["a"] * 17}, "list of 1 to 16"),
    ({"captions": ["a" * 501]}, "501 characters"),
    ({"captions": ["a\0b"]}, "control characters"),
    ({"captions": ["a\x1b[31mb"]}, "control characters"),
    ({"captions": ["a"], "seed": "x"}, "seed must be a whole number"),
    ({"captions": ["a"], "seed": -1}, "seed must be"),
    ({"captions": ["a"], "seed": True}, "seed must be"),
    ({"captions": ["a"], "seed": 10**30}, "seed must be"),
    ({"captions": ["a"], "num": 0}, "num must be"),
    ({"captions": ["a"] * 16, "num": 16}, "too many images"),
    ({"captions": ["a"], "truncation": -1}, "truncation must be"),
    ({"captions": ["a"], "format": "../x"}, "format must be"),
    ({"captions": ["a"], "weights": []}, "weights must be"),
    ({"captions": ["a"], "step": "6"}, "step must be"),
    ({"captions": ["a"], "model": ["workdir"]}, "model must be"),
    ({"captions": ["a"], "sead": 1}, "unknown field 'sead'"),
    ([], "not a JSON object"),
]


@pytest.mark.parametrize(("body", "words"), HOSTILE)
def test_what_cannot_be_answered_is_refused_by_name(client, body, words):
    refused(client.post("/generate", json=body), 400, words)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 60_000,
        b'{"captions": ["a"], "seed": ' + b"9" * 5000 + b"}",
        b'{"captions": ["\\ud800"]}',
        b'{"captions": ["a"], "truncation": NaN}',
    ],
)
def test_broken_json_is_refused(client, body):
    response = client.post("/generate", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_large_bodies_and_other_types_are_not_read(client):
    refused(generate(client, "a" * 100_000), 413, "65,536 bytes")
    refused(client.post("/generate", content=b"{}"), 415, "send JSON")
    assert client.get("/generate").status_code == 405


@pytest.mark.parametrize(
    "caption",
    ["<script>alert(1)</script>", "{{7*7}} $(id) `id`", "../../etc/passwd", "[SEP] é 漢 😀"],
)
def test_markup_and_code_are_only_text(client, caption):
    response = generate(client, caption)
    assert images(response).shape[0] == 1
    assert response.json()["manifest"]["images"][0]["caption"] == caption
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_caption_that_is_cut_is_noted(client):
    assert "word pieces" in generate(client, "a red star " * 8).json()["notes"][0]


@pytest.mark.parametrize("path", ["/page.py", "/../routes.py", "/%2e%2e/routes.py", "/models/x"])
def test_only_the_files_of_the_page_are_served(client, path):
    assert client.get(path).status_code == 404


def test_the_page_loads_nothing_from_elsewhere(client):
    for path in ("/", "/page.js", "/page.css"):
        response = client.get(path)
        assert response.status_code == 200
        assert "http" not in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]


def test_health_and_version(client):
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    assert {"package_version", "commit", "jax_version"} <= set(client.get("/version").json())


def test_a_model_that_is_not_there_is_reported_and_others_work(client):
    good, bad = client.get("/models").json()
    assert (good["name"], good["error"], good["steps"]) == ("workdir", None, [3, 6])
    assert "shapes/tiny" in good["about"]
    assert "no model" in bad["error"]
    refused(generate(client, "a", model="nothere"), 503, "no model")
    refused(generate(client, "a", model="/etc"), 404, "no model '/etc'")
    refused(generate(client, "a", step=4), 503, "has no checkpoint of step 4")
    assert images(generate(client, "a")).shape[0] == 1


def test_a_damaged_model_names_no_path(tiny_workdir, tmp_path):
    damaged = shutil.copytree(tiny_workdir, tmp_path / "damaged")
    for path in (damaged / "checkpoints/6").rglob("record.json"):
        path.write_text("{")
    with serving(damaged) as client:
        response = generate(client, "a")
        refused(response, 503, "damaged")
        assert str(tmp_path) not in response.text
        assert images(generate(client, "a", step=3)).shape[0] == 1
        (damaged / "config.json").unlink()
        (described,) = client.get("/models").json()
        assert "config.json" in described["error"]
        assert str(tmp_path) not in described["error"]


def test_the_newest_checkpoint_is_picked_up_and_may_vanish_again(tiny_workdir, tmp_path):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run")
    newest, elsewhere = workdir / "checkpoints/6", tmp_path / "6"
    newest.rename(elsewhere)
    with serving(workdir) as client:

        def step():
            return generate(client, "a").json()["manifest"]["step"]

        assert step() == 3
        elsewhere.rename(newest)
        assert step() == 6
        assert client.get("/models").json()[0]["steps"] == [3, 6]
        shutil.rmtree(newest)
        assert step() == 3
        shutil.rmtree(workdir)
        refused(generate(client, "a"), 503, "no model")
        assert "no model" in client.get("/models").json()[0]["error"]


def test_weights_are_let_go_by_age_and_by_number(tiny_workdir, monkeypatch):
    models = Models([str(tiny_workdir)])
    first = models.get(("workdir", 3, False))
    assert models.get(("workdir", 3, False)) is first
    monkeypatch.setattr(models_module, "MOST_WEIGHTS", 1)
    models.get(("workdir", None, False))
    assert models.get(("workdir", 3, False)) is not first
    monkeypatch.setattr(models, "_keep_seconds", -1)
    models.release_unused()
    assert models.describe("workdir")["loaded"] is False


# The queue.


@pytest.fixture
def blocked():
    """Return a queue whose thread waits, and the event that lets it go on."""
    queue, go = BatchQueue(limit=4), threading.Event()
    started = threading.Event()

    def block(works):
        started.set()
        go.wait(60)
        return works

    queue.submit(block, None)
    assert started.wait(60)
    yield queue, go
    go.set()
    queue.close()


def test_jobs_of_one_key_are_one_batch_in_their_order(blocked):
    queue, go = blocked
    batches = []

    def run(works):
        batches.append([*works])
        return [work * 10 for work in works]

    keys = ("a", "a", "b", "a")
    jobs = [queue.submit(run, i, key) for i, key in enumerate(keys)]
    go.set()
    assert [job.result(60) for job in jobs] == [0, 10, 20, 30]
    assert batches == [[0, 1], [2], [3]]


def test_a_full_queue_refuses_at_once_and_a_failure_stops_nothing(blocked):
    queue, go = blocked
    failing = queue.submit(lambda _: 1 / 0, None)
    jobs = [queue.submit(lambda works: works, i) for i in range(3)]
    with pytest.raises(QueueFull):
        queue.submit(lambda works: works, 3)
    go.set()
    with pytest.raises(ZeroDivisionError):
        failing.result(60)
    assert [job.result(60) for job in jobs] == [0, 1, 2]


def test_overload_is_answered_by_429(tiny_workdir):
    service = Service(Models([str(tiny_workdir)]))
    go = threading.Event()
    with TestClient(make_app(service)) as client:
        service.queue.submit(lambda works: go.wait(60) and works, None)
        with ThreadPoolExecutor(WAITING + 6) as pool:
            asked = [pool.submit(generate, client, "a", seed=i) for i in range(WAITING + 6)]
            early = [job.result() for job in asked if job.done()]
            while len(early) < 4:
                early = [job.result() for job in asked if job.done()]
            assert {response.status_code for response in early} == {429}
            assert early[0].headers["retry-after"] == "1"
            assert client.get("/health").json()["waiting"] == WAITING
            go.set()
            statuses = [job.result().status_code for job in asked]
    assert statuses.count(200) >= WAITING
    assert set(statuses) == {200, 429}
