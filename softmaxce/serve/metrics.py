"""What a server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """The counters of one server.

    Args:
        paths: that it answers; others are counted together, so that clients cannot make up more.
    """

    def __init__(self, paths: frozenset[str]) -> None:
        self._paths = paths
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "softmaxce_requests", "Answered requests.", ["method", "path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "softmaxce_request_seconds",
            "From a request's headers to the end of its answer.",
            ["path"],
            registry=self._registry,
            buckets=SECONDS,
        )
        self._batches = Histogram(
            "softmaxce_batch_images", "Images that the model ran on at once.", registry=self._registry, buckets=IMAGES
        )
        ProcessCollector(registry=self._registry)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; status 0 is one without an answer, because the client had gone."""
        known = path if path in self._paths else "other"
        method = method if method in ("GET", "HEAD", "POST") else "other"
        self._requests.labels(method, known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
