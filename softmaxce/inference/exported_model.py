"""An exported model in use: the same interface as a run's TrainedModel, with ONNX Runtime in place of PyTorch.

Predictions need no torch. An evaluation does, for the data set alone, whose splits are tensors.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config.keys import Config
from ..config.reader import as_recorded, from_dict
from ..data.arrays import Pixels
from ..data.paths import Unreadable
from ..data.prefetch import Decoded
from ..errors import ConfigError, Problem, RunError
from .export_metadata import ExportMetadata, check_intact, read_metadata
from .onnx_session import OnnxSession
from .predict import ImageLike, Prediction, Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.splits import Dataset, Split
    from .metrics import Metrics

BATCH_SIZE = 256  # images at once, if the run's data.eval_batch_size is larger
SMALLEST = 2.0**-149  # the smallest positive float32


@dataclass(frozen=True)
class ExportedModel:
    """A model that `softmaxce export` wrote as ONNX; made by `ExportedModel.open`.

    Attributes:
        checkpoint: the ONNX file.
        metadata: what it says of itself.
        session: images [N, C, H, W] -> probabilities [N, K].
        batch_size: images at once.
        data_root: where the data set is now; None for where the config says.
        trust_code: run the user's code for the data set that the config names.
        allow_changed_data: whether `split` returns images other than those of the training.
        fingerprints: of the splits whose images were checked, by name.
    """

    checkpoint: Path
    metadata: ExportMetadata
    session: OnnxSession
    batch_size: int
    data_root: Path | None = None
    trust_code: bool = False
    allow_changed_data: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        device: str | None = None,
        batch_size: int | None = None,
        tta: str | None = None,
        temperature: float | None = None,
        data_root: Path | None = None,
        trust_code: bool = False,
        allow_changed_data: bool = False,
    ) -> "ExportedModel":
        """Read and check an exported ONNX file. Arguments as of TrainedModel.open.

        Raises: RunError if it was not written by softmaxce or is damaged; ConfigError if ONNX Runtime is not installed,
            or for another device than the CPU, another temperature or other test-time augmentation than the file's.
        """
        file = Path(path)
        metadata = read_metadata(file)
        check_intact(file)
        if device not in (None, "auto", "cpu"):
            raise ConfigError([Problem("--device", f"an exported model runs on the CPU here, not on {device}")])
        _check_inside(file, "--tta", tta, metadata.tta)
        _check_inside(file, "--temperature", temperature, metadata.temperature)
        recorded = metadata.config.get("data")
        size = recorded.get("eval_batch_size") if isinstance(recorded, dict) else None
        return cls(
            checkpoint=file,
            metadata=metadata,
            session=OnnxSession(file, metadata.shape, len(metadata.classes), metadata.resizing.depth),
            batch_size=batch_size or min(BATCH_SIZE, size if isinstance(size, int) and size > 0 else BATCH_SIZE),
            data_root=data_root,
            trust_code=trust_code,
            allow_changed_data=allow_changed_data,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.metadata.classes

    @property
    def epoch(self) -> int:
        """The epoch that the weights are of."""
        return self.metadata.epoch

    @property
    def temperature(self) -> float:
        """What the graph divides the logits by."""
        return self.metadata.temperature

    @property
    def tta(self) -> str:
        """The test-time augmentation inside the graph."""
        return self.metadata.tta

    @property
    def record(self) -> dict[str, Any]:
        """What a run.json says of the images of the training."""
        return {"environment": {"data": self.metadata.images}} if self.metadata.images else {}

    @cached_property
    def config(self) -> Config:
        """What the run was trained with. Raises: ConfigError if it is none."""
        data = as_recorded(dict(self.metadata.config))
        if self.data_root is not None and isinstance(data.get("data"), dict):
            data["data"] = {**data["data"], "root": str(self.data_root)}
        return replace(from_dict(data, str(self.checkpoint), self.metadata.recipe), recorded=True)

    # -- predictions --------------------------------------------------------------------------------------------------

    def probabilities(self, images: Pixels) -> NDArray[np.float64]:
        """Images [N, C, H, W] in the model's shape -> [N, K]."""
        return self.session.probabilities(images).astype(np.float64)

    def predict(self, images: ImageLike | Iterable[ImageLike], top: int | None = None) -> list[Prediction]:
        """Classify image files, PIL images or arrays, as TrainedModel.predict does. Raises: DataError."""
        return self.predictor.of_images(images, self.metadata.shape, self.metadata.resizing, top)

    def predict_decoded(self, decoded: Iterable[Decoded], top: int | None = None) -> Iterator[Prediction | Unreadable]:
        """Classify decoded files, as TrainedModel.predict_decoded does."""
        yield from self.predictor.of_decoded(decoded, top)

    @property
    def predictor(self) -> Predictor:
        """Makes the predictions, in batches of `batch_size`."""
        return Predictor(self.probabilities, self.classes, self.batch_size)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> "Dataset":
        """The splits that the run used, read at the first use. Raises: as TrainedModel.dataset."""
        from .run_data import read_dataset

        source = self.config.source
        if ":" in source.name and not source.implied and not self.trust_code:
            raise RunError(
                f"{self.checkpoint}: its config names code outside softmaxce, {source.name}, which would be run; "
                "if you trust that file and that code, add --trust-code"
            )
        return read_dataset(self.config, self.classes, self.checkpoint, self.record)

    def split(self, name: str, *, check_images: bool = True) -> "Split":
        """The `train`, `validation` or `test` split that the run used. As TrainedModel.split."""
        from ..runs.provenance import check_split
        from .run_data import choose_split

        split = choose_split(self.dataset, name)
        if check_images and name not in self.fingerprints:
            self.fingerprints[name] = check_split(
                self.checkpoint, name, split, self.record, allow_changed_data=self.allow_changed_data
            )
        return split

    def folder_split(self, folder: Path) -> "Split":
        """The images of a folder, one sub-folder per class, or of a table, in the model's shape. Raises: DataError."""
        from .run_data import read_other

        return read_other(folder, self.classes, self.metadata.shape, self.metadata.resizing, self.config)

    def logits(self, split: "str | Split") -> "tuple[Tensor, Tensor]":
        """The logarithms of the probabilities of a split, in its order, which are logits at temperature 1; and labels.

        Returns: [N, K] float64 and [N] int64. A probability that is 0 in float32 counts as the smallest one, 1.4e-45.
        Raises: DataError, RunError as TrainedModel.logits.
        """
        import torch

        from ..data.batches import Batches
        from ..data.preprocessing import Preprocessing
        from .run_data import check_shape

        selected = self.split(split) if isinstance(split, str) else split
        metadata = self.metadata
        check_shape(selected, metadata.shape)
        preprocessing = Preprocessing(metadata.shape, metadata.mean, metadata.std)
        batches = Batches(selected, preprocessing, batch_size=self.batch_size, device=torch.device("cpu"))
        rows = [torch.from_numpy(self.session.probabilities(images.numpy())) for images in batches.pixels()]
        return torch.cat(rows).double().clamp_min(SMALLEST).log(), selected.labels

    def metrics_of(self, logits: "Tensor", labels: "Tensor") -> "Metrics":
        """The metrics of what `logits` returned; without the training loss, which a file of probabilities has not."""
        from .metrics import compute_metrics

        return compute_metrics(logits, labels, None, self.classes)

    def probabilities_of(self, logits: "Tensor") -> "Tensor":
        """The probabilities [N, K] float64 of what `logits` returned."""
        return logits.exp()

    def nll_of(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The negative log-likelihood of labels [N], nats: [N] float64."""
        return -logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def _check_inside(file: Path, option: str, requested: object, inside: object) -> None:
    """Refuse another value than what is inside the graph. Raises: ConfigError."""
    if requested not in (None, inside):
        message = f"{requested} cannot be had of {file}, which has {inside} inside; use the run, or export it again"
        raise ConfigError([Problem(option, message)])
