"""The model of a server: one thread runs it, on all images that wait, as one batch."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.arrays import Pixels
from ..data.resizing import Resizing
from ..inference.exported_model import ExportedModel
from ..inference.opening import is_exported
from ..inference.predict import Predictor

if TYPE_CHECKING:
    from ..explain.explanation import Explanation
    from ..inference.trained_model import TrainedModel

NO_LABEL = "The predicted class is taken as the label; choose the true one below the sliders."
LOGARITHMS = (
    "An exported file gives probabilities alone. Their logarithms are shown as the logits: softmax of them gives the "
    "same probabilities, and the network's own logits differ from them by one number, the same for all classes."
)


class Classifier:
    """A model that several threads may use; it ends with the `with` block.

    Args:
        name: of the model, for people.
        shape: (C, H, W) of its images.
        resizing: how images are decoded and brought to it.
        is_dark: whether its images are dark on average.
        predictor: pixels -> probabilities.
        explain: an image [C, H, W] and a title -> the explanation of its loss.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        resizing: Resizing,
        is_dark: bool,
        predictor: Predictor,
        explain: "Callable[[Pixels, str], Explanation]",
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.resizing = resizing
        self.is_dark = is_dark
        self.predictor = predictor
        self._explain = explain
        self.on_batch = on_batch
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Classifier":
        self.probabilities(np.zeros(self.shape, self.resizing.depth)).result()  # the first batch compiles and allocates
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def probabilities(self, pixels: Pixels) -> "Future[NDArray[np.floating]]":
        """An image [C, H, W] -> its probabilities [K], once the model has run on a batch with it."""
        return self._submit(_Task(pixels))

    def explanation(self, pixels: Pixels, title: str) -> "Future[Explanation]":
        """An image [C, H, W] -> how its loss is computed."""
        return self._submit(_Task(pixels, lambda: self._explain(pixels, title)))

    def _submit(self, task: "_Task") -> "Future[Any]":
        self._waiting.put(task)
        return task.future

    def _run(self) -> None:
        """The thread: the model runs here alone, so that it need not be safe for several threads."""
        is_open = True
        while is_open:
            tasks = [self._waiting.get()]
            while len(tasks) < self.predictor.batch_size and not self._waiting.empty():
                tasks.append(self._waiting.get())
            is_open = None not in tasks
            # A client that has gone has canceled its task.
            current = [task for task in tasks if task is not None and task.future.set_running_or_notify_cancel()]
            self._classify([task for task in current if task.call is None])
            for task in current:
                if task.call is not None:
                    task.answer(task.call)

    def _classify(self, batch: "list[_Task]") -> None:
        if not batch:
            return
        self.on_batch(len(batch))
        images = np.stack([task.pixels for task in batch])
        try:
            rows = self.predictor.probabilities(images)
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            for task in batch:
                task.future.set_exception(error)
            return
        for task, row in zip(batch, rows, strict=True):
            task.future.set_result(row)


class _Task:
    """What waits for the thread: an image to be classified, or a call in its place."""

    def __init__(self, pixels: Pixels, call: Callable[[], Any] | None = None) -> None:
        self.pixels = pixels
        self.call = call
        self.future: Future[Any] = Future()

    def answer(self, call: Callable[[], Any]) -> None:
        try:
            self.future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self.future.set_exception(error)


def open_classifier(
    path: Path,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Open a run or an exported model for a server. Arguments and errors as of TrainedModel.open."""
    if is_exported(path):
        return _of_exported(ExportedModel.open(path, device=device, batch_size=batch_size, temperature=temperature))
    from ..inference.trained_model import TrainedModel

    def opened(device: str | None) -> TrainedModel:
        return TrainedModel.open(
            path, device=device, batch_size=batch_size, temperature=temperature, trust_code=trust_code
        )

    model = opened(device or "auto")
    return _of_run(model, model if model.device.type == "cpu" else opened("cpu"))


def _of_run(model: "TrainedModel", on_cpu: "TrainedModel") -> Classifier:
    import torch

    from ..explain import trained

    def explain(pixels: Pixels, title: str) -> "Explanation":
        explanation = trained.explain_image(on_cpu, torch.tensor(pixels), None, title=title)
        notes = (NO_LABEL if note == trained.NO_LABEL else note for note in explanation.notes)
        return replace(explanation, notes=tuple(notes))

    run = "/".join(model.checkpoint.resolve().parent.parts[-2:])
    images = model.preprocessing
    name = f"{run} (epoch {model.epoch})"
    return Classifier(name, images.shape, images.resizing, _is_dark(images.mean), model.predictor, explain)


def _of_exported(model: ExportedModel) -> Classifier:
    metadata = model.metadata

    def explain(pixels: Pixels, title: str) -> "Explanation":
        import torch  # a server of an exported model needs it for explanations alone

        from ..explain.explanation import explain_logits
        from ..inference.exported_model import SMALLEST

        logits = torch.from_numpy(model.probabilities(pixels[None])[0]).clamp_min(SMALLEST).log()
        explanation = explain_logits(logits, int(logits.argmax()), model.classes)
        return replace(explanation, title=title, image=torch.tensor(pixels), notes=(NO_LABEL, LOGARITHMS))

    name = f"{metadata.run} (epoch {metadata.epoch})"
    return Classifier(name, metadata.shape, metadata.resizing, _is_dark(metadata.mean), model.predictor, explain)


def _is_dark(mean: tuple[float, ...]) -> bool:
    return sum(mean) / len(mean) < 0.5
