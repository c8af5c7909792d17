"""The HTTP server: its socket and its end."""

import contextlib
import ipaddress
import logging
import socket

import uvicorn

from ..errors import ConfigError, Problem
from .app import Application
from .classifier import Classifier
from .connection import connection_type
from .limits import LINGER, Limits

END = 20.0  # seconds that running requests have to end, beyond those that a request has to arrive
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections. Raises: ConfigError if the address cannot be used.

    Args:
        host: a name or an IP address of this machine; 0.0.0.0 or :: for all.
        port: 0 for any that is free.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "choose another --port; 0 takes a free one" if "in use" in str(error) else "choose another --host"
        raise ConfigError([Problem(f"--host {host} --port {port}", f"{reason}; {remedy}")]) from None
    return opened


def url(opened: socket.socket) -> str:
    """The address for a browser."""
    host, port = opened.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def is_local(opened: socket.socket) -> bool:
    """Whether only programs of this machine reach it."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def run(classifier: Classifier, opened: socket.socket, limits: Limits, host: str) -> None:
    """Answer requests until SIGINT or SIGTERM; requests that have begun are answered before the signal takes effect.

    Args:
        classifier: the model.
        opened: as `listen` returned it.
        limits: of requests.
        host: as it was given; on this machine alone, the Host header may have this name.
    """
    hosts = frozenset({*LOOPBACK, host.lower(), f"[{host.lower()}]"}) if is_local(opened) else None
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the client is told of a malformed form
    application = Application(classifier, limits, hosts)
    config = uvicorn.Config(
        application.asgi,
        http=connection_type(limits.seconds),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.seconds + LINGER + END),
    )
    with contextlib.closing(application):
        uvicorn.Server(config).run([opened])
