"""`softmaxce serve` in a process of its own: real clients, a real browser, and clients that do it wrong."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from softmaxce.data.resizing import DEFAULT
from softmaxce.inference.predict import Predictor
from softmaxce.serve.classifier import Classifier

from ..browser import Browser

DIGITS = ("digits", "--set", "model=linear", "--epochs", "2", "--set", "data.augment=[]", "-q")
TIMEOUT = 1.5  # seconds for a request to arrive, in these tests
REQUESTS = int(os.environ.get("SOFTMAXCE_TEST_REQUESTS", "100"))


class Server:
    """The command, serving until it is ended."""

    def __init__(self, *words: str | Path) -> None:
        command = [str(Path(sys.executable).parent / "softmaxce"), "serve", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--timeout", str(TIMEOUT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.line = self.process.stderr.readline()
        (self.url,) = re.findall(r"http://[^ ]+/", self.line)
        self.port = urlsplit(self.url).port or 0

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request on a connection of its own: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def memory(self) -> int:
        """Its resident memory, bytes."""
        (pages,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(pages) << 10

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status, and what it wrote to stdout and stderr since it began to serve."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err


@pytest.fixture(scope="module")
def run(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, and model.onnx in it."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    for words in (("train", *DIGITS, "--output", str(folder)), ("export", str(folder))):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module", params=["run", "exported"])
def model(request: pytest.FixtureRequest, run: Path) -> Path:
    return run if request.param == "run" else run / "model.onnx"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    started = Server(model)
    yield started
    status, text = started.end()
    assert (status, text) == (143, ""), "no answer is worth a line"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several formats and sizes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(3)
    for i in range(REQUESTS):
        suffix, mode = (("png", "L"), ("jpg", "RGB"), ("webp", "RGB"), ("png", "RGBA"))[i % 4]
        size = (8 + i % 50, 9 + i % 31)
        pixels = random.integers(0, 256, (*size, len(mode)), dtype=np.uint8)
        Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode).save(folder / f"{i:04d}.{suffix}")
    return sorted(folder.iterdir())


def predictions(app: typer.Typer, model: Path, *words: str | Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["predict", str(model), *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(actual: dict[str, Any], expected: dict[str, Any], path: str) -> None:
    """An answer is the line of predict --json, up to the rounding of another number of images at once."""
    assert actual["path"] == path
    assert list(actual) == list(expected)
    top = {entry["class"]: entry["probability"] for entry in actual["top"]}
    assert top == {entry["class"]: pytest.approx(entry["probability"], abs=1e-6) for entry in expected["top"]}
    assert [entry["probability"] for entry in actual["top"]] == sorted(top.values(), reverse=True)
    assert (actual["class"], actual["probability"]) == tuple(actual["top"][0].values())


# -- answers ----------------------------------------------------------------------------------------------------------


def test_each_of_many_requests_of_8_clients_gets_what_predict_prints(
    app: typer.Typer, model: Path, server: Server, images: list[Path]
) -> None:
    expected = predictions(app, model, images[0].parent, "--top", "10")
    assert [Path(line["path"]) for line in expected] == images

    def ask(file: Path) -> tuple[int, bytes]:
        status, _, content = server.ask("/predict?top=10", file.read_bytes())
        return status, content

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, images))
    assert {status for status, _ in answers} == {200}
    for (_, content), line in zip(answers, expected, strict=True):
        assert_same(json.loads(content), line, path="")


def test_a_form_of_several_images_gets_a_list_in_its_order(
    app: typer.Typer, model: Path, server: Server, images: list[Path]
) -> None:
    chosen = images[:20:3]
    content, kind = form([(f"image{i}", file.name, file.read_bytes()) for i, file in enumerate(chosen)])
    status, _, answer = server.ask("/predict?top=3", content, Content_Type=kind)
    assert status == 200
    expected = predictions(app, model, *chosen, "--top", "3")
    for actual, line, file in zip(json.loads(answer), expected, chosen, strict=True):
        assert_same(actual, line, path=file.name)


def form(parts: Sequence[tuple[str, str | None, bytes]]) -> tuple[bytes, str]:
    """A multipart form: its bytes and its type. A part without a file's name is a field."""
    content = b""
    for name, file, data in parts:
        named = f'; filename="{file}"' if file is not None else ""
        content += f'--limit\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"
    return content + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def test_health_names_the_classes_and_metrics_count_the_requests(server: Server) -> None:
    status, _, content = server.ask("/health")
    assert status == 200
    assert json.loads(content)["classes"] == [str(i) for i in range(10)]

    def healthy() -> float:
        text = server.ask("/metrics")[2].decode()
        (count,) = re.findall(
            r'^softmaxce_requests_total\{method="GET",path="/health",status="200"\} (.*)$', text, re.M
        )
        return float(count)

    before = healthy()
    for _ in range(3):
        server.ask("/health")
    assert healthy() == before + 3


def test_a_server_of_an_exported_model_loads_torch_only_to_explain(run: Path, images: list[Path]) -> None:
    started = Server(run / "model.onnx")

    def has_torch() -> bool:
        return "libtorch" in Path(f"/proc/{started.process.pid}/maps").read_text()

    assert started.ask("/predict", images[0].read_bytes())[0] == 200
    assert not has_torch()
    assert started.ask("/explain", images[0].read_bytes())[0] == 200
    assert has_torch()
    assert started.end() == (143, "")


def test_images_that_wait_while_the_model_runs_are_one_batch() -> None:
    sizes: list[int] = []
    begun, may_end = Event(), Event()

    def probabilities(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        sizes.append(len(images))
        if len(sizes) == 2:
            begun.set()
            assert may_end.wait(30)
        return images.reshape(len(images), -1)[:, :2] / 100

    predictor = Predictor(probabilities, ("a", "b"), batch_size=4)
    explain: Any = None
    with Classifier("model", (1, 1, 2), DEFAULT, True, predictor, explain) as classifier:
        images = [np.array([[[i, 100 - i]]], dtype=np.uint8) for i in range(8)]
        futures = [classifier.probabilities(images[0])]
        assert begun.wait(30)
        futures += [classifier.probabilities(image) for image in images[1:]]
        assert futures[2].cancel()  # a client that has gone
        may_end.set()
        rows = [future.result().tolist() for i, future in enumerate(futures) if i != 2]
    assert rows == [[i / 100, (100 - i) / 100] for i in range(8) if i != 2]
    assert sizes == [1, 1, 3, 3]  # the first is the warm-up; batch_size is the most that are taken at once


# -- refusals ---------------------------------------------------------------------------------------------------------


def png(size: tuple[int, int], mode: str = "L") -> bytes:
    stream = BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def zeros(megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield bytes(1_000_000)


FIELD, TEXT_FILE, NO_FILE = (form(parts) for parts in ([("a", None, b"1")], [("a", "a.txt", b"hello")], []))
CUT = png((64, 64))[:-40]
REFUSED: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "text": ("/predict", b"hello", {}, 400, "it is not an image; send an image file"),
    "an empty body": ("/predict", b"", {}, 400, "has no body; send an image file"),
    "a damaged image": ("/predict", CUT, {}, 400, "send an image file"),
    "67 megapixels": ("/predict", png((8192, 8192)), {}, 400, "8192x8192 pixels are more than 25,000,000"),
    "67 megapixels to explain": ("/explain", png((8192, 8192), "1"), {}, 400, "pixels are more than 25,000,000"),
    "30 MB": ("/predict", bytes(30_000_000), {}, 413, "more than 20 MB; send smaller"),
    "30 MB of unknown length": ("/predict", zeros(30), {}, 413, "more than 20 MB"),
    "30 MB to another address": (
        "/nope",
        bytes(30_000_000),
        {},
        404,
        "there is no such address; there are /, /predict",
    ),
    "an unknown address": ("/favicon.ico", None, {}, 404, "there are /, /predict, /explain"),
    "another method": ("/predict", None, {}, 405, "POST for /predict"),
    "no number": ("/predict?top=all", png((8, 8)), {}, 400, "top must be a whole number from 1"),
    "0 classes": ("/predict?top=0", png((8, 8)), {}, 400, "top must be a whole number from 1"),
    "another host": ("/health", None, {"Host": "attacker.example:8000"}, 403, "no name attacker.example:8000; use"),
    "a form without files": ("/predict", NO_FILE[0], {"Content-Type": NO_FILE[1]}, 400, "the form has no files"),
    "a form's field": ("/predict", FIELD[0], {"Content-Type": FIELD[1]}, 400, "the form's a is no file"),
    "a form's text": ("/predict", TEXT_FILE[0], {"Content-Type": TEXT_FILE[1]}, 400, "a.txt: it is not an image"),
    "a form that is none": ("/predict", b"hello", {"Content-Type": FIELD[1]}, 400, ""),
    "a form without a boundary": ("/predict", b"hello", {"Content-Type": "multipart/form-data"}, 400, ""),
}


@pytest.mark.parametrize("model", ["exported"], indirect=True)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_request_is_refused_with_what_to_do_and_takes_no_memory(server: Server, kind: str) -> None:
    path, body, headers, status, message = REFUSED[kind]
    server.ask("/predict", png((2000, 2000)))
    before = server.memory()
    for _ in range(2):
        answered, reply, content = server.ask(path, body if not isinstance(body, Iterator) else zeros(30), **headers)
        assert answered == status
        assert reply["Content-Type"] == "application/json"
        (error,) = json.loads(content).values()
        assert message in error
        assert "\n" not in error
    assert server.memory() < before + 40_000_000
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize("model", ["exported"], indirect=True)
@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_request_of_a_byte_at_a_time_is_refused_while_others_are_answered(server: Server, part: str) -> None:
    content = png((8, 8))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    sent = b"" if part == "headers" else head
    rest = (head + content)[len(sent) :]
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as connection:
        connection.sendall(sent)
        answer = b""
        for byte in rest:
            connection.sendall(bytes([byte]))
            try:
                while b"}" not in answer:
                    answer += connection.recv(1 << 16)
                break
            except TimeoutError:
                assert server.ask("/predict", content)[0] == 200
    assert TIMEOUT <= time.monotonic() - began < 2 * TIMEOUT
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 1.5 s" in answer


@pytest.mark.parametrize("model", ["exported"], indirect=True)
def test_what_is_no_http_is_refused_in_json(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 a browser's first bytes of TLS\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "without TLS" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_more_requests_than_may_be_answered_at_once_are_refused(run: Path) -> None:
    started = Server(run / "model.onnx", "--max-requests", "1")
    content = png((8, 8))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", started.port), timeout=10) as first:
        first.sendall(head)
        time.sleep(0.2)
        status, headers, answer = started.ask("/predict", content)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "try again" in json.loads(answer)["error"]
        assert started.ask("/health")[0] == 200
        first.sendall(content)
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert started.ask("/predict", content)[0] == 200
    assert started.end() == (143, "")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_running_request_end(run: Path, number: int, expected: int) -> None:
    started = Server(run / "model.onnx")
    content = png((8, 8))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    idle = socket.create_connection(("127.0.0.1", started.port), timeout=10)
    with idle, socket.create_connection(("127.0.0.1", started.port), timeout=10) as running:
        running.sendall(head + content[:9])
        time.sleep(0.3)
        started.process.send_signal(number)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            started.ask("/health")
        running.sendall(content[9:])
        assert running.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        out, err = started.process.communicate(timeout=30)
    assert (started.process.returncode, out, err) == (expected, "", "")


# -- the command ------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_status_2(app: typer.Typer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for words, part in (
            ((run, "--port", port), f"--host 127.0.0.1 --port {port}: Address already in use; choose another --port"),
            ((run, "--host", "192.0.2.1"), "choose another --host"),
            ((run.parent / "nothing",), "nothing"),
            ((run / "model.onnx", "--device", "cuda"), "--device"),
            ((run / "config.yaml",), "config.yaml"),
        ):
            done = CliRunner().invoke(app, ["serve", *map(str, words)])
            assert done.exit_code == 2, (words, done.output)
            (line,) = done.stderr.splitlines()
            assert part in line
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as Python marks a module that is not there
    done = CliRunner().invoke(app, ["serve", str(run)])
    assert done.exit_code == 2
    assert done.stderr == "error: serve: needs uvicorn; install with: pip install 'softmaxce[serve]'\n"


# -- the page ---------------------------------------------------------------------------------------------------------


def listed(page: Browser) -> dict[str, float]:
    """The classes that the page lists, with their probabilities."""
    script = (
        "[...document.querySelectorAll('#classes tr')].map(r => [r.cells[0].innerText, r.cells[1].firstChild.value])"
    )
    return {name: float(value) for name, value in page.evaluate(script)}


def explained(page: Browser, column: str) -> list[float]:
    """A column of the explanation's tables, with all digits."""
    script = f"[...document.querySelector('iframe').contentDocument.querySelectorAll('data[data-column={column}]')]"
    rows = page.evaluate(f"{script}.map(d => [d.dataset.class, d.value])")
    values = {int(index): float(value) for index, value in rows}
    return [values[i] for i in sorted(values)]


READY = (
    "document.querySelectorAll('#classes tr').length === 10 && document.getElementById('message').textContent === ''"
)


def test_a_drawn_digit_has_the_numbers_of_predict_and_explain(
    app: typer.Typer, run: Path, model: Path, server: Server, images: list[Path], tmp_path: Path
) -> None:
    with Browser(tmp_path / "profile") as page:
        page.open(server.url)
        left, top = page.evaluate("(b => [b.left, b.top])(document.getElementById('pad').getBoundingClientRect())")
        for stroke in ([(90, 60), (190, 60), (130, 130)], [(130, 130), (200, 160), (190, 220), (90, 230)]):
            page.drag([(left + x, top + y) for x, y in stroke])
        page.wait(
            f"{READY} && document.querySelector('iframe').contentDocument.querySelector('data[data-column]') !== null"
        )
        drawn = tmp_path / "drawn.png"
        picture = page.evaluate("document.getElementById('pad').toDataURL('image/png')")
        drawn.write_bytes(base64.b64decode(picture.partition(",")[2]))
        (expected,) = predictions(app, model, drawn, "--top", "10")
        assert listed(page) == {
            entry["class"]: pytest.approx(entry["probability"], abs=1e-6) for entry in expected["top"]
        }
        shown = explained(page, "probabilities")
        by_class = {entry["class"]: entry["probability"] for entry in expected["top"]}
        assert shown == pytest.approx([by_class[str(i)] for i in range(10)], abs=1e-6)
        if model == run:
            done = CliRunner().invoke(app, ["explain", str(run), str(drawn), "--json"])
            steps = json.loads(done.stdout)
            assert explained(page, "raw_logits") == pytest.approx(steps["raw_logits"], rel=1e-6, abs=1e-6)
            assert explained(page, "gradient") == pytest.approx(steps["gradient"], abs=1e-6)
        page.choose("#file", [images[1]])  # a photograph in its place
        page.wait("!document.getElementById('photo').hidden")
        page.wait(READY)
        (expected,) = predictions(app, model, images[1], "--top", "10")
        assert listed(page)[expected["class"]] == pytest.approx(expected["probability"], abs=1e-6)
        text = tmp_path / "a.txt"
        text.write_text("hello")
        page.choose("#file", [text])
        page.wait("document.getElementById('message').classList.contains('error')")
        assert "it is not an image" in page.evaluate("document.getElementById('message').textContent")
        assert listed(page) == {}
        page.resize(390, 700)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        refused = [problem for problem in page.problems if "400" not in problem]  # Chromium logs the answer to the text
        assert refused == []
        assert all(address.startswith((server.url, "data:", "blob:", "about:")) for address in page.requests)
