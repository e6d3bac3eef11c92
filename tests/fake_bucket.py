"""Google Cloud Storage on the loopback interface: as much of its JSON API as the clients use.

Spoken to by gcsfs, TensorStore, the reader of array_record and google-cloud-storage, in this
process and in those that it starts.
"""

import base64
import contextlib
import email
import http.server
import itertools
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit


class Object(NamedTuple):
    """Content of an object, and the number of its version."""

    data: bytes
    generation: int


class Cloud:
    """Buckets by name, each with its objects by name; `fail` answers every request with a status.

    Attributes:
        requests: method and path of what was asked.
    """

    def __init__(self, *buckets: str) -> None:
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self.fail = 0
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._generations = itertools.count(1)

    def put(self, bucket: str, name: str, data: bytes, required: str | None = None) -> Object:
        """Write an object; KeyError if `required`, the generation to replace, is another one."""
        with self.lock:
            old = self.buckets[bucket].get(name)
            if required is not None and int(required) != (old.generation if old else 0):
                raise KeyError(name)
            new = self.buckets[bucket][name] = Object(data, next(self._generations))
            return new

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the names of objects, sorted."""
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    cloud: Cloud
    uploads: dict[str, tuple[str, str, str | None, bytearray]]  # resumable ones, by their path
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.body = self._read_body()
        self.cloud.requests.append((self.command, self.path))
        if self.cloud.fail:
            self._error(self.cloud.fail, "the test says so")
            return
        if url.path in self.uploads:
            self._continue_upload(url.path)
            return
        found = re.fullmatch(
            r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path
        )
        if not found:
            self._error(404, "no such path")
            return
        kind, bucket, name = found[1], unquote(found[2]), unquote(found[3] or "")
        if bucket not in self.cloud.buckets:
            self._error(404, "The specified bucket does not exist.")
        elif kind == "/upload":
            self._upload(bucket)
        elif self.command == "POST":
            self._move(bucket, found[3])
        elif name:
            self._object(bucket, name)
        elif url.path.endswith("/o"):
            self._list(bucket)
        else:
            self._json({"kind": "storage#bucket", "name": bucket})

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _upload(self, bucket: str) -> None:
        name, required = self.query.get("name", ""), self.query.get("ifGenerationMatch")
        if self.query.get("uploadType") == "resumable":
            name = name or json.loads(self.body)["name"]
            path = f"/resumable/{len(self.uploads)}"
            self.uploads[path] = bucket, name, required, bytearray()
            self._send(200, b"", Location=f"http://{self.headers['Host']}{path}")
            return
        data = self.body
        if self.query.get("uploadType") == "multipart":
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            _, about, content, _ = data.split(b"--" + boundary)
            name = json.loads(email.message_from_bytes(about.lstrip()).get_payload())["name"]
            data = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            data = re.sub(rb"\r?\n\Z", b"", data)
        self._put(bucket, name, data, required)

    def _continue_upload(self, path: str) -> None:
        bucket, name, required, data = self.uploads[path]
        if self.command == "DELETE":
            self._send(499, b"")
            return
        data += self.body
        sent = self.headers.get("Content-Range", f"bytes 0-0/{len(data)}")
        if sent.endswith(f"/{len(data)}"):
            self._put(bucket, name, bytes(data), required)
        else:
            self._send(308, b"", Range=f"bytes=0-{len(data) - 1}")

    def _put(self, bucket: str, name: str, data: bytes, required: str | None) -> None:
        try:
            found = self.cloud.put(bucket, name, data, required)
        except KeyError:
            self._error(412, "At least one of the pre-conditions you specified did not hold.")
            return
        self._json(_describe(bucket, name, found))

    def _move(self, bucket: str, rest: str) -> None:
        source, _, target = rest.partition("/moveTo/o/")
        with self.cloud.lock:
            found = self.cloud.buckets[bucket].pop(unquote(source), None)
            if found is None or not target:
                self._error(404, "No such object")
                return
            new = self.cloud.put(bucket, unquote(target), found.data)
        self._json(_describe(bucket, unquote(target), new))

    def _object(self, bucket: str, name: str) -> None:
        with self.cloud.lock:
            found = self.cloud.buckets[bucket].get(name)
            if found is None:
                self._error(404, f"No such object: {bucket}/{name}")
                return
            if self.command == "DELETE":
                del self.cloud.buckets[bucket][name]
                self._send(204, b"")
                return
        if self.query.get("alt") != "media":
            self._json(_describe(bucket, name, found))
            return
        if str(found.generation) == self.query.get("ifGenerationNotMatch"):
            self._send(304, b"")
            return
        size, status = len(found.data), 200
        start, end, headers = 0, size, {"X-Goog-Generation": str(found.generation)}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if start >= size:
                self._error(416, "The requested range cannot be satisfied.")
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._send(status, found.data[start:end], **headers)

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        items, prefixes = [], set()
        first = self.query.get("pageToken") or self.query.get("startOffset", "")
        most, token = int(self.query.get("maxResults", 1000)), None
        with self.cloud.lock:
            for name in self.cloud.names(bucket, prefix):
                if name < first:
                    continue
                if "endOffset" in self.query and name >= self.query["endOffset"]:
                    break
                head, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
                if cut:
                    prefixes.add(prefix + head + cut)
                    continue
                if len(items) == most:
                    token = name
                    break
                items.append(_describe(bucket, name, self.cloud.buckets[bucket][name]))
        answer: dict[str, Any] = {"kind": "storage#objects", "items": items}
        answer |= {"prefixes": sorted(prefixes)} if prefixes else {}
        self._json(answer | ({"nextPageToken": token} if token else {}))

    def _json(self, values: Any, status: int = 200) -> None:
        self._send(status, json.dumps(values).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: int, message: str) -> None:
        self._json({"error": {"code": status, "message": message}}, status)

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def _describe(bucket: str, name: str, found: Object) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "name": name,
        "bucket": bucket,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "etag": base64.b64encode(str(found.generation).encode()).decode(),
        "timeCreated": now,
        "updated": now,
        "mediaLink": f"/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media",
    }


@contextlib.contextmanager
def serve(*buckets: str) -> Iterator[tuple[Cloud, dict[str, str]]]:
    """Yield the cloud, and the variables by which clients find it."""
    cloud = Cloud(*buckets)
    handler = type("Handler", (Handler,), {"cloud": cloud, "uploads": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients hang up on answers that they no longer need
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    variables = {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks by gRPC
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_TIMEOUT": "0",
    }
    try:
        yield cloud, variables
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
