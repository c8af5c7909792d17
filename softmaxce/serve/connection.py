"""One connection of the server: uvicorn's, on which a request's headers have to arrive within a time."""

import asyncio
import json
from http import HTTPStatus
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn limits the time between two requests alone, so that a connection could wait for headers forever."""

    seconds: ClassVar[float] = 10.0  # for a request's headers
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """A part of a request has arrived."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # its headers are there
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "this is no valid HTTP request; send one, without TLS: http, not https")

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self.conn.trailing_data[0]:  # not even one byte: a browser's connection in reserve
            self.transport.close()
            return
        self._refuse(408, f"the request's headers did not arrive within {self.seconds:g} s; send it faster")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self.transport.is_closing():
            return
        content = json.dumps({"error": message}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content))), ("connection", "close")]
        answer = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
        self.transport.write(
            b"".join(self.conn.send(e) or b"" for e in (answer, h11.Data(content), h11.EndOfMessage()))
        )
        self.transport.close()


def connection_type(seconds: float) -> type[asyncio.Protocol]:
    """Connections with this limit."""
    return type("LimitedConnection", (Connection,), {"seconds": seconds})
