"""The HTTP routes of the service and of its page."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from xmcgan.errors import UserError
from xmcgan.serving import drawing, requests
from xmcgan.serving.batching import BatchQueue, QueueFull
from xmcgan.serving.models import Models, UnknownModel
from xmcgan.serving.requests import Ask, BadRequest
from xmcgan.utils.provenance import provenance

WAITING = 16  # requests; more are refused
BODY_SECONDS = 10  # in which a request must have arrived
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
          "/page.css": ("page.css", "text/css")}  # fmt: skip
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Service:
    """Answers to requests, all sampled by the one thread of the queue."""

    def __init__(self, models: Models, waiting: int = WAITING) -> None:
        self.models = models
        self.queue = BatchQueue(waiting, models.release_unused)
        self.default = next(iter(models.folders), "")
        self.version = {key: value for key, value in provenance().items() if key != "command"}

    def warm_up(self) -> None:
        """Load the first model and compile its sampler, while the page is being opened."""
        request = Ask((self.default, None, False), ["a"])
        self.queue.submit(lambda works: drawing.generate(self.models, works), request)

    async def answer(self, route: str, body: bytes) -> tuple[bytes, str]:
        """Return the answer to a request and its media type, when its turn has come."""
        ask = requests.parse(route, body, self.default)
        draw, encode = drawing.ROUTES[route]
        key, size = None, 1
        if route == "generate":  # the others stay alone
            key, size = ask.key, len(ask.captions) * ask.num
        job = self.queue.submit(lambda asks: draw(self.models, asks), ask, key, size)
        return await run_in_threadpool(encode, await asyncio.wrap_future(job), ask)

    async def list_models(self) -> list[dict[str, Any]]:
        names = list(self.models.folders)
        return await run_in_threadpool(lambda: [self.models.describe(name) for name in names])

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "waiting": len(self.queue)}


def make_app(service: Service) -> Starlette:
    """Return the ASGI application of a service; the service is closed with it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.queue.close)

    def post(route: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                content, media_type = await service.answer(route, await _read_body(request))
            except Exception as error:
                return _refusal(error)
            return Response(content, media_type=media_type)

        return Route(f"/{route}", endpoint, methods=["POST"])

    def get(path: str, answer: Callable) -> Route:
        async def endpoint(_: Request) -> Response:
            value = answer()
            return _json(await value if asyncio.iscoroutine(value) else value)

        return Route(path, endpoint)

    routes = [
        *map(post, drawing.ROUTES),
        get("/health", service.health),
        get("/version", lambda: service.version),
        get("/models", service.list_models),
        *[_file(path, *file) for path, file in _FILES.items()],
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(_SafeHeaders)])


class _SafeHeaders:
    """ASGI middleware: no answer loads or runs anything from elsewhere."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Refused(Exception):
    """A request that is not read; the arguments are status and text."""


async def _read_body(request: Request) -> bytes:
    """Return the body; the type keeps pages of other sites from sending one."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise _Refused(415, "send JSON, with content-type: application/json")
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > requests.MOST_BYTES:
                    raise _Refused(413, f"the request has over {requests.MOST_BYTES:,} bytes")
    except TimeoutError:
        raise _Refused(408, f"the request did not arrive in {BODY_SECONDS} s") from None
    except ClientDisconnect:
        raise _Refused(400, "the client is gone") from None
    return body


def _refusal(error: Exception) -> Response:
    """Return the answer that names an error."""
    match error:
        case _Refused():
            status, text = error.args
        case QueueFull():
            status, text = 429, "too many requests are waiting: try again in a moment"
        case BadRequest():
            status, text = 400, str(error)
        case UnknownModel():
            status, text = 404, str(error)
        case UserError():
            status, text = 503, str(error)
        case _:
            logging.getLogger(__name__).error("a request failed", exc_info=error)
            status, text = 500, "the server failed; its log says why"
    return _json({"error": text}, status, {"retry-after": "1"} if status == 429 else None)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = drawing.json_bytes(value)
    return Response(content, status, headers, "application/json")


def _file(path: str, name: str, media_type: str) -> Route:
    content = (resources.files("xmcgan.serving") / name).read_bytes()

    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, endpoint)
