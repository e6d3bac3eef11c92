"""Models on the hub: what is pinned, verified and refused, against a server on this machine."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import xmcgan
from xmcgan.errors import WeightsError
from xmcgan.sampling.exploration import open_model
from xmcgan.sampling.model_folder import load_from_flags, load_model, read_model
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.train import train
from xmcgan.utils.provenance import read_starts

COMMIT = "c" * 40
REPO = "someone/tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """Speak the hub's protocol as far as loading and publishing use it."""

    protocol_version = "HTTP/1.0"  # one request a connection: none outlives the server
    files: dict[str, bytes]
    created: list[dict[str, Any]]
    requests: list[str]

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        file = re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path)
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            if "/tree/" in path:
                self.json([{"type": "file", "path": n, "size": len(data), "oid": "0" * 40}
                           for n, data in self.files.items()])  # fmt: skip
            else:
                self.json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings})
        elif not file:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif file[1] not in ("main", "v1", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif file[2] not in self.files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            data = self.files[file[2]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.json({"url": f"http://127.0.0.1/{REPO}"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False}
                                 for n in names]})  # fmt: skip
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            self.json({"commitUrl": f"http://127.0.0.1/{REPO}/commit/{COMMIT}",
                       "commitOid": COMMIT})  # fmt: skip
        else:
            self.json({})

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def folder(tiny_workdir, tmp_path_factory):
    return TrainedModel.from_workdir(tiny_workdir).save(tmp_path_factory.mktemp("m") / "tiny")


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    """Serve the folder as `hf:someone/tiny`; the cache is empty."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    handler = type("Handler", (Hub,), {"files": files, "created": [], "requests": []})
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http_server.daemon_threads = True
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.daemon = True
    thread.start()
    address = f"http://127.0.0.1:{http_server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    handler.stop = staticmethod(
        lambda: (http_server.shutdown(), http_server.server_close(), thread.join())
    )
    yield handler
    with contextlib.suppress(OSError):
        handler.stop()


def test_a_model_of_the_hub_is_pinned_and_cached(server, folder, capsys):
    server.files["old.pkl"] = b"\x80\x04."
    model = xmcgan.load_model(f"hf:{REPO}")
    assert model.origin["hub"] == f"hf:{REPO}@{COMMIT}"
    assert "ignored old.pkl" in capsys.readouterr().out
    assert not any("old.pkl" in request for request in server.requests)
    z = np.zeros((1, model.config.generator.z_dim), np.float32)
    np.testing.assert_array_equal(
        model(["a red circle"], z), load_model(folder)(["a red circle"], z)
    )
    asked = sum(request.startswith("GET") for request in server.requests)
    assert load_from_flags(None, f"hf:{REPO}@v1").origin["hub"] == model.origin["hub"]
    assert open_model(f"hf:{REPO}@{COMMIT}")[0].origin["hub"] == model.origin["hub"]
    files = [r for r in server.requests[asked:] if r.startswith("GET") and "/resolve/" in r]
    assert len([r for r in files if "safetensors" in r]) <= 1  # the cache has them


def test_a_run_starts_from_a_model_of_the_hub(server, folder, tiny_config, tmp_path):
    tiny_config.init_from, tiny_config.num_train_steps = f"hf:{REPO}@v1", 1
    assert train(tiny_config, tmp_path / "run") == 0
    (entry,) = read_starts(tmp_path / "run")
    assert entry["init_from"]["hub"] == f"hf:{REPO}@{COMMIT}"
    assert entry["init_from"]["left_out"] == []


def test_without_a_network_the_cache_is_used_and_else_the_error_says_so(server):
    load_model(f"hf:{REPO}")
    server.stop()
    assert load_model(f"hf:{REPO}").origin["hub"].endswith(COMMIT)
    with pytest.raises(WeightsError, match=r"cannot be reached.*hf:someone/other"):
        load_model("hf:someone/other")


@pytest.mark.parametrize(
    ("hub_id", "message"),
    [
        ("hf:nobody/nothing", "no model hf:nobody/nothing"),
        (f"hf:{REPO}@v9", "no such revision"),
        ("hf:tiny", "is no hub id"),
        ("hf:some one/x", "is no hub id"),
    ],
)
def test_what_is_not_there_is_named(server, hub_id, message):
    with pytest.raises(WeightsError, match=message):
        load_model(hub_id)


def test_a_repository_that_is_no_model_folder_is_refused(server):
    del server.files["model.json"]
    with pytest.raises(WeightsError, match="is no model folder"):
        load_model(f"hf:{REPO}")


def test_digests_that_differ_are_refused(server):
    server.files["generator.safetensors"] = server.files["generator.safetensors"][:-1] + b"\x77"
    with pytest.raises(WeightsError, match=r"generator\.safetensors"):
        load_model(f"hf:{REPO}")


def test_a_model_of_a_newer_version_is_refused_by_its_name(server):
    facts = json.loads(server.files["model.json"]) | {"format": 2, "version": "7.8.9"}
    server.files["model.json"] = json.dumps(facts).encode()
    with pytest.raises(WeightsError, match=r"7\.8\.9"):
        load_model(f"hf:{REPO}")


def test_a_pickle_in_a_folder_is_ignored_and_said(folder, tmp_path, capsys):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "weights.pt").write_bytes(b"\x80\x04.")
    read_model(copy)
    assert "ignored weights.pt" in capsys.readouterr().out


def test_a_run_is_published_and_loaded_back(server, run, tiny_workdir):
    server.files.clear()
    flags = ("--license", "apache-2.0", "--to", f"hf:{REPO}", "--private")
    status, output, errors = run("scripts/publish.py", "--workdir", tiny_workdir, *flags)
    assert status == 0, errors
    assert COMMIT in output
    created = server.created[0]  # older versions of the library say it in another way
    assert created.get("private") is True or created.get("visibility") == "private"
    card = server.files["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "## What it cannot do" in card
    assert load_model(f"hf:{REPO}").step == 6


def test_a_folder_is_published_as_it_is(run, folder, tmp_path):
    flags = ("--license", "cc0-1.0", "--to", tmp_path / "out")
    status, _, errors = run("scripts/publish.py", "--model", folder, *flags)
    assert status == 0, errors
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: cc0-1.0\n")
    assert load_model(tmp_path / "out").step == 6


def test_publishing_without_a_license_is_refused(run, folder, tmp_path):
    status, _, errors = run("scripts/publish.py", "--model", folder, "--to", tmp_path / "out")
    assert (status, "--license" in errors) == (2, True)
