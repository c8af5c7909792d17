"""What a server accepts: how large a request may be, how long it may take to arrive, how many are answered at once."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For so many seconds the rest of a body is discarded after an early answer, so that the client reads that answer; until
# so many seconds without a byte. Both are nginx's. The second number also holds for a request that was too slow.
LINGER, SILENCE = 30.0, 5.0
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),  # no other site's page around this server's
]


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: bytes of a request.
        pixels: of an image.
        seconds: for a request to arrive.
        requests: that are answered at once.
    """

    body: int = 20_000_000
    pixels: int = 25_000_000
    seconds: float = 10.0
    requests: int = 32


class Refusal(Exception):
    """A request that is answered with an error: its status, what is wrong and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"retry-after": "1"} if self.status == 503 else None
        return JSONResponse({"error": str(self)}, self.status, headers)


class LimitedRequests:
    """ASGI middleware that applies the limits, and reports every answer.

    Args:
        app: what answers.
        limits: to apply.
        hosts: the names that the Host header may have; None for any. A web page of another site whose name has come to
            resolve to this machine (DNS rebinding) is refused by it.
        report: called with method, path, status and seconds of each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        hosts: frozenset[str] | None,
        report: Callable[[str, str, int, float], None],
    ) -> None:
        self.app = app
        self.limits = limits
        self.hosts = hosts
        self.report = report
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        began, status = time.perf_counter(), 0
        body = Body(scope, receive, self.limits)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                close = [] if body.complete else [(b"connection", b"close")]
                message = {**message, "headers": [*message.get("headers", []), *HEADERS, *close]}
            elif not message.get("more_body", False) and not body.complete:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body"}
            await send(message)

        self.active += 1
        try:
            self._check(scope)
            await self.app(scope, body.receive, answer)
        except Refusal as refusal:
            if not status:
                await refusal.response()(scope, body.receive, answer)
        finally:
            self.active -= 1
            self.report(scope["method"], scope["path"], status, time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        """Raises: Refusal."""
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refusal(403, f"this server has no name {host}; use the address that it printed, or give it a --host")
        if scope["method"] == "POST" and self.active > self.limits.requests:
            raise Refusal(503, f"{self.limits.requests} requests are being answered; try again soon")


def _name(host: str) -> str:
    """A Host header without its port: `localhost:8000`, `[::1]:8000`."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()


class Body:
    """A request's body, read within the limits.

    Attributes:
        complete: whether all of it has been read.
    """

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        headers = dict(scope["headers"])
        self.complete = not int(headers.get(b"content-length", 0)) and b"transfer-encoding" not in headers
        self._declared = int(headers.get(b"content-length", 0))
        self._receive = receive
        self._limits = limits
        self._bytes = 0
        self._deadline = asyncio.get_running_loop().time() + limits.seconds

    async def receive(self) -> Message:
        """The next part. Raises: Refusal if there is too much, or it is too slow."""
        if self.complete:
            return await self._receive()
        self._check_size(self._declared)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                408, f"the request did not arrive within {self._limits.seconds:g} s; send smaller images"
            ) from None
        self._note(message)
        self._check_size(self._bytes)
        return message

    async def discard(self) -> None:
        """Read the rest, and forget it: a connection that is closed with unread data loses what was answered."""
        now = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):  # a client that goes on for longer gets a closed connection
            async with asyncio.timeout(LINGER if now < self._deadline else SILENCE):
                while not self.complete:
                    async with asyncio.timeout(SILENCE):
                        self._note(await self._receive())

    def _note(self, message: Message) -> None:
        self._bytes += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _check_size(self, size: int) -> None:
        if size > self._limits.body:
            limit = f"{self._limits.body / 1e6:,.0f} MB"
            raise Refusal(413, f"the request has more than {limit}; send smaller or fewer images")
