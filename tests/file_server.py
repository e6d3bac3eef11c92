"""A file server on the loopback interface that can be told to misbehave."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any


class Files(http.server.BaseHTTPRequestHandler):
    """Serve bytes by path, ranges too; faults are set on the class made by `serve`."""

    files: dict[str, bytes]
    cuts: list[int]  # bytes after which the next answers break off
    ranges = True
    stall_after = 0  # bytes after which an answer waits, if not 0
    shift = 0  # how far ranges begin from where they were asked
    requests: list[tuple[str, str]]

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.requests.append((self.path, asked))
        data = self.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        start += self.shift if start else 0
        self.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
            self.close_connection = True
        if self.stall_after:
            self.wfile.write(body[: self.stall_after])
            self.wfile.flush()
            while self.stall_after:
                time.sleep(0.01)
            return
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(files: dict[str, bytes], **faults: Any) -> Iterator[tuple[str, type[Files]]]:
    """Yield the server's address and its handler, on which faults can be set."""
    handler = type("Handler", (Files,), {"files": files, "cuts": [], "requests": [], **faults})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
