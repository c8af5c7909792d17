"""The addresses that a server answers, and what it answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .. import streams
from ..data.arrays import Pixels
from ..data.prefetch import decode_to
from ..errors import DataError, SoftmaxceError, in_one_line
from ..report.html.serve_page import serve_page
from ..report.json_values import finite
from ..report.predictions import to_dict
from ..runtime.processors import processors
from .classifier import Classifier
from .limits import LimitedRequests, Limits, Refusal
from .metrics import CONTENT_TYPE, ServerMetrics

if TYPE_CHECKING:
    from ..explain.explanation import Explanation

MAX_IMAGES = 100  # of one request
DECODERS = 4  # images that are decoded at once, at most: each takes memory for all of its pixels
FORM = "multipart/form-data"
T = TypeVar("T")


class Application:
    """Answers requests about one model.

    Args:
        classifier: the model.
        limits: of requests.
        hosts: the names that the Host header may have; None for any.
    """

    def __init__(self, classifier: Classifier, limits: Limits, hosts: frozenset[str] | None = None) -> None:
        self.classifier = classifier
        self.limits = limits
        self._decode = decode_to(classifier.shape, classifier.resizing)
        self._threads = ThreadPoolExecutor(min(DECODERS, processors()), "decode")
        self._page = serve_page(classifier.name, classifier.predictor.classes, is_dark=classifier.is_dark)
        routes = [
            Route("/", self.page),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        self._metrics = ServerMetrics(frozenset(route.path for route in routes))
        classifier.on_batch = self._metrics.batch
        app = Starlette(
            routes=routes,
            exception_handlers={
                Refusal: _refused,
                HTTPException: _http_error,
                ClientDisconnect: _gone,
                Exception: _failed,
            },
        )
        self.asgi = LimitedRequests(app, limits, hosts, self._metrics.answered)

    async def page(self, request: Request) -> Response:
        """The page to drop an image on, or to draw one."""
        return HTMLResponse(self._page)

    async def health(self, request: Request) -> Response:
        """That the server answers, and what it classifies."""
        name, classes = self.classifier.name, list(self.classifier.predictor.classes)
        return JSONResponse({"status": "ok", "model": name, "classes": classes})

    async def metrics(self, request: Request) -> Response:
        """The counters."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def predict(self, request: Request) -> Response:
        """The classes of the image that is the body, as one object; of a form's images, as a list of them."""
        top = _top(request)
        is_form = request.headers.get("content-type", "").lower().startswith(FORM)
        images = await _images_of_form(request) if is_form else [("", await _image_of_body(request))]
        pixels = await asyncio.gather(*(self._decoded(name, content) for name, content in images))
        futures = [asyncio.wrap_future(self.classifier.probabilities(image)) for image in pixels]
        rows = np.stack(await asyncio.gather(*futures))
        predictions = self.classifier.predictor.ranked(rows, [name for name, _ in images], top)
        data = [finite(to_dict(prediction, top)) for prediction in predictions]
        return JSONResponse(data if is_form else data[0])

    async def explain(self, request: Request) -> Response:
        """The page of `softmaxce explain --html` for the image that is the body."""
        pixels = await self._decoded("", await _image_of_body(request))
        title = f"An image, classified by {self.classifier.name}"
        explanation = await asyncio.wrap_future(self.classifier.explanation(pixels, title))
        return HTMLResponse(await self._in_thread(partial(_explanation_page, explanation)))

    async def _decoded(self, name: str, content: bytes) -> Pixels:
        call = partial(self._decode.array_of, content, name, self.limits.pixels)
        try:
            return await self._in_thread(call)
        except DataError as error:
            what = f"{name}: " if name else "the request's body: "
            reason = error.command_text.removeprefix(f"{name}: ")
            raise Refusal(400, f"{what}{reason}; send an image file, such as JPEG or PNG") from None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)


def _explanation_page(explanation: "Explanation") -> str:
    from ..report.html.explanation_page import html  # it imports torch, which predictions of exported models do without

    return html(explanation)


def _top(request: Request) -> int:
    """How many classes are named. Raises: Refusal."""
    text = request.query_params.get("top", "1")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise Refusal(400, "top must be a whole number from 1, as in /predict?top=3")
    return int(text)


async def _image_of_body(request: Request) -> bytes:
    """Raises: Refusal."""
    content = await request.body()
    if not content:
        raise Refusal(400, "the request has no body; send an image file as it: curl --data-binary @photo.jpg URL")
    return content


async def _images_of_form(request: Request) -> list[tuple[str, bytes]]:
    """The names and contents of a form's files. Raises: Refusal."""
    images = []
    async with request.form(max_files=MAX_IMAGES, max_fields=MAX_IMAGES) as form:
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Refusal(400, f"the form's {key} is no file; send files: curl --form image=@photo.jpg URL")
            images.append((value.filename or "", await value.read()))
    if not images:
        raise Refusal(400, "the form has no files; send some: curl --form image=@photo.jpg URL")
    return images


# -- errors -----------------------------------------------------------------------------------------------------------

REMEDIES = {
    404: "there is no such address; there are /, /predict, /explain, /health and /metrics",
    405: "this address takes another method: POST for /predict and /explain, GET for the others",
}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = REMEDIES.get(error.status_code, error.detail)
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """What nobody reads: the client has closed the connection."""
    return Response(status_code=400)


async def _failed(request: Request, error: Exception) -> Response:
    """The model has failed, for lack of memory for example."""
    message = error.command_text if isinstance(error, SoftmaxceError) else in_one_line(error)
    streams.line(f"error: {request.method} {request.url.path}: {message}", err=True)
    return JSONResponse({"error": f"the model has failed: {message}"}, 500)
