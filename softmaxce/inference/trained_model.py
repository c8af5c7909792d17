"""A trained model, opened from a run folder or a checkpoint: its splits, logits, metrics and predictions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import streams
from ..argument_types import TEMPERATURES, Depth
from ..build import build_loss, build_model
from ..config.components import build
from ..config.keys import Config
from ..config.objects import changed_objects, with_objects
from ..config.reader import as_recorded, from_dict
from ..config.users_code import refuse_users_code
from ..data.arrays import Pixels
from ..data.batches import Batches
from ..data.paths import Unreadable
from ..data.prefetch import PrefetchingDecoder, decode_to
from ..data.preprocessing import Preprocessing
from ..data.splits import Dataset, InMemory, Split
from ..errors import ConfigError, DataError, Problem
from ..losses.interface import Loss
from ..runs import checkpoint as checkpoints
from ..runs.checkpoint import Checkpoint
from ..runs.folder import read_record
from ..runs.header import find_checkpoint, resizing_of
from ..runs.provenance import check_split
from ..runs.resume import at_recorded_root
from ..runs.validation import check_weights
from ..runtime.allocator import keep_freed_memory
from ..runtime.device import choose_device, choose_precision, share_processors
from ..runtime.random_state import set_deterministic
from ..training.evaluation import loss_of, predict
from .metrics import Metrics, compute_metrics
from .predict import AHEAD, ImageLike, Prediction, Predictor
from .run_data import check_shape, choose_split, read_dataset, read_other
from .temperature import temperature_of
from .tta import with_tta


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, ready for evaluation and prediction; made by `TrainedModel.open`.

    Attributes:
        checkpoint: the file that its weights are from.
        epoch: the epoch they are of.
        config: what it was trained with, but for the values that `open` replaced; `device` is as recorded.
        classes: K names.
        class_counts: the training images of each class.
        preprocessing: the shape, resizing and normalization of its images.
        device: where it computes.
        model: images [B, C, H, W] float, normalized -> logits [B, K]; with the config's test-time augmentation.
        temperature: what logits are divided by before softmax.
        allow_changed_data: whether `split` returns images other than those of the training.
    """

    checkpoint: Path
    epoch: int
    config: Config
    classes: tuple[str, ...]
    class_counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module
    temperature: float = 1.0
    allow_changed_data: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the splits whose images were checked, by name
    saved_loss: Checkpoint | None = None  # the checkpoint without its weights, for the state of a user's loss

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
        model: nn.Module | None = None,
        loss: Loss | None = None,
        dataset: Dataset | None = None,
    ) -> "TrainedModel":
        """Read, check and build the model of a run.

        Args:
            path: a run folder, for its best checkpoint or else its last, or a checkpoint.
            device: auto, cpu, cuda, cuda:N or mps; None for the run's own, if this machine has it, else auto.
            batch_size: images at once; None for the run's data.eval_batch_size.
            tta: the test-time augmentation, as in a config; None for the run's own.
            temperature: None for the run's own: the one that `softmaxce calibrate` stored, else 1.
            data_root: where the data set is now; None for the config's data.root, else, if that does not hold it, where
                it was at training by run.json, if its images are the same.
            trust_code: run the `module:Name` code that the checkpoint names; refused otherwise.
            allow_changed_data: use the run's splits although their images are not those of the training.
            model: in place of what the config names; it gets the run's weights. Needed if the run was given an object.
            loss: likewise; for the loss among the metrics.
            dataset: likewise; for the run's splits.
        Raises: RunError if there is no checkpoint, it is damaged, or its weights do not fit; ConfigError if its parts
            cannot be built, or the machine has no such device.
        """
        _check_temperature(temperature)
        file = find_checkpoint(Path(path))
        loaded = checkpoints.load(file)
        changes = {"tta": tta, "data.root": data_root and str(data_root), "data.eval_batch_size": batch_size}
        changes = {key: value for key, value in changes.items() if value is not None}
        config = config_of(loaded, changes, trust_code=trust_code)
        for text in changed_objects(config, {"model": model, "loss": loss, "dataset": dataset}):
            streams.warning(f"{file}: {text}")
        config = with_objects(config, model=model, loss=loss, dataset=dataset)
        if data_root is None and not config.is_in(config.root):
            config = at_recorded_root(config, _record_beside(file))
        where = _device(loaded, config, device)
        preprocessing = _preprocessing(loaded)
        return cls(
            checkpoint=file,
            epoch=loaded.header["epoch"],
            config=config,
            classes=tuple(loaded.header["classes"]),
            class_counts=loaded.header["class_counts"],
            preprocessing=preprocessing,
            device=where,
            model=_build_model(loaded, config, preprocessing, where),
            temperature=temperature_of(file) if temperature is None else temperature,
            allow_changed_data=allow_changed_data,
            saved_loss=_saved_loss(loaded, config),
        )

    @cached_property
    def loss(self) -> Loss:
        """The loss it was trained with; built at the first use, which predictions never make.

        Raises: RunError if its saved state does not fit.
        """
        loss = build_loss(self.config, self.class_counts, self.device)
        if self.saved_loss is not None:
            checkpoints.load_loss(loss, self.saved_loss)
        return loss

    @property
    def precision(self) -> str:
        """What the forward pass computes in: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    @property
    def tta(self) -> str:
        """The test-time augmentation, as in a config."""
        return self.config.tta

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run.json beside the checkpoint; empty if there is none. Raises: RunError if it is damaged."""
        return _record_beside(self.checkpoint)

    # -- the run's data -----------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset:
        """The splits that the run used, read at the first use; their images are not compared with the training's.

        Raises: DataError if the data has other classes than the model.
        """
        return read_dataset(self.config, self.classes, self.checkpoint, self.record)

    def split(self, name: str, *, check_images: bool = True) -> Split:
        """The `train`, `validation` or `test` split that the run used.

        Args:
            name: of the split.
            check_images: refuse images that are not those of the training, or warn where `allow_changed_data` is set.
        Raises: DataError if the run has no such split; RunError if its images have changed.
        """
        split = choose_split(self.dataset, name)
        if check_images and name not in self.fingerprints:
            run = self.checkpoint.parent if self.record else self.checkpoint
            self.fingerprints[name] = check_split(
                run, name, split, self.record, allow_changed_data=self.allow_changed_data
            )
        return split

    def folder_split(self, folder: Path) -> Split:
        """The images of a folder, one sub-folder per class, or of a table, in the model's shape. Raises: DataError."""
        return read_other(folder, self.classes, self.preprocessing.shape, self.preprocessing.resizing, self.config)

    def batches(self, split: Split) -> Batches:
        """A split's batches, preprocessed as the training images were. Raises: DataError if the shape is another."""
        check_shape(split, self.preprocessing.shape)
        return Batches(split, self.preprocessing, batch_size=self.config.data.eval_batch_size, device=self.device)

    # -- what the model says ------------------------------------------------------------------------------------------

    def logits(self, split: str | Split) -> tuple[Tensor, Tensor]:
        """Logits and labels of a split, given by its name or itself, in its order.

        Returns: [N, K] float32, not divided by the temperature, and [N] int64; on the model's device.
        Raises: as split and batches.
        """
        selected = self.split(split) if isinstance(split, str) else split
        return predict(self.model, self.batches(selected), self.precision)

    def metrics(self, split: str | Split) -> Metrics:
        """Loss, accuracy, calibration and per-class metrics on a split. Raises: as logits."""
        return self.metrics_of(*self.logits(split))

    def evaluate(self, split: str = "test") -> Metrics:
        """The metrics on one of the run's splits. Raises: as logits."""
        return self.metrics(split)

    def metrics_of(self, logits: Tensor, labels: Tensor, temperature: float | None = None) -> Metrics:
        """The metrics of logits [N, K] and labels [N], as `logits` returns them.

        The loss is of the logits as they are, probabilities are at the temperature: None for the model's.
        """
        loss = loss_of(self.loss, logits, labels)
        scaled = logits.cpu().double() / (self.temperature if temperature is None else temperature)
        return compute_metrics(scaled, labels.cpu(), loss, self.classes)

    def probabilities(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in the model's shape and depth -> [N, K] float64 at the temperature, on the CPU.

        Raises: DataError if the images have another shape or type.
        """
        check_tensor(images, self.preprocessing.depth)
        unlabeled = torch.zeros(len(images), dtype=torch.int64)
        return self.probabilities_of(self.logits(InMemory(images, unlabeled))[0])

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Logits [N, K], as `logits` returns them -> [N, K] float64 at the temperature, on the CPU."""
        return torch.softmax(logits.cpu().double() / self.temperature, 1)

    def nll_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The negative log-likelihood of labels [N] at the temperature, nats: [N] float64 on the CPU."""
        log_probabilities = torch.log_softmax(logits.cpu().double() / self.temperature, 1)
        return -log_probabilities.gather(1, labels.cpu().unsqueeze(1)).squeeze(1)

    def predict(self, images: ImageLike | Tensor | Iterable[ImageLike], top: int | None = None) -> list[Prediction]:
        """Classify images.

        Args:
            images: image files (paths), PIL images or arrays [H, W] or [H, W, C], one or several, brought to the shape
                that the model was trained with; or a tensor [N, C, H, W] or [C, H, W] that has it. Arrays and tensors
                are uint8, or of the run's data.depth.
            top: how many classes each prediction names, the most probable first; None for all.
        Raises: DataError if an image cannot be read or has an unsuitable shape or type.
        """
        if isinstance(images, Tensor):
            batch = images if images.ndim == 4 else images.unsqueeze(0)
            check_tensor(batch, self.preprocessing.depth)
            return self.predictor.of_pixels(batch.cpu().numpy(), None, top)
        return self.predictor.of_images(images, self.preprocessing.shape, self.preprocessing.resizing, top)

    def predict_files(
        self, files: Iterable[str | Unreadable], top: int | None = None
    ) -> Iterator[Prediction | Unreadable]:
        """Classify image files while others are decoded in threads, in their order.

        Args:
            files: their paths, read only as far ahead as is decoded.
            top: as in `predict`.
        Returns: an Unreadable in place of each file that cannot be decoded.
        """
        decode = decode_to(self.preprocessing.shape, self.preprocessing.resizing)
        with PrefetchingDecoder(files, decode, AHEAD * self.config.data.eval_batch_size) as decoded:
            yield from self.predict_decoded(decoded, top)

    def predict_decoded(self, decoded: PrefetchingDecoder, top: int | None = None) -> Iterator[Prediction | Unreadable]:
        """As `predict_files`, of files whose decoding, to the model's shape, has begun already."""
        yield from self.predictor.of_decoded(decoded, top)

    @property
    def predictor(self) -> Predictor:
        """Makes the predictions, in batches of data.eval_batch_size."""

        def probabilities(images: Pixels) -> NDArray[np.float64]:
            return self.probabilities(torch.from_numpy(images)).numpy()

        return Predictor(probabilities, self.classes, self.config.data.eval_batch_size)


def check_tensor(images: Tensor, depth: Depth) -> None:
    """Raises: DataError unless these are images as a tensor, [N, C, H, W] of the depth."""
    if images.dtype != getattr(torch, depth) or images.ndim != 4:
        raise DataError(f"images as a tensor must be {depth} [N, C, H, W], got {images.dtype} {list(images.shape)}")


def _record_beside(checkpoint: Path) -> dict[str, Any]:
    folder = checkpoint.parent
    return read_record(folder) if (folder / "run.json").is_file() else {}


def config_of(checkpoint: Checkpoint, changes: dict[str, Any] | None = None, *, trust_code: bool = False) -> Config:
    """The config a checkpoint was trained with, with some top-level or data keys changed.

    Raises: ConfigError if it is not a valid config; RunError if it names `module:Name` and that code is not trusted.
    """
    data = as_recorded(checkpoint.header["config"])
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        if section:
            data[section] = {**(data[section] if isinstance(data.get(section), dict) else {}), name: value}
        else:
            data[key] = value
    config = replace(from_dict(data, str(checkpoint.file), checkpoint.header["recipe"]), recorded=True)
    if not trust_code:
        refuse_users_code(config, str(checkpoint.file), training=False)
    return config


def _saved_loss(checkpoint: Checkpoint, config: Config) -> Checkpoint | None:
    """The checkpoint without weights, for the state of its loss; None where the config has another loss."""
    recorded = checkpoint.header["config"].get("loss")
    name = recorded.get("name") if isinstance(recorded, dict) else recorded
    return replace(checkpoint, weights={}, training=None) if config.loss.name == name else None


def _check_temperature(value: float | None) -> None:
    low, high = TEMPERATURES
    if value is not None and not low <= value <= high:
        raise ConfigError([Problem("temperature", f"must be a number from {low:g} to {high:g}, got {value}")])


def _device(checkpoint: Checkpoint, config: Config, requested: str | None) -> torch.device:
    if requested is not None:
        return choose_device(
            config_of(checkpoint, {"device": requested}, trust_code=True).device
        )  # checked as a config
    try:
        return choose_device(config.device)
    except ConfigError:  # trained on a device that this machine lacks
        return choose_device("auto")


def _preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    stored = checkpoint.header["preprocessing"]
    channels, height, width = stored["shape"]
    mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
    return Preprocessing((channels, height, width), mean, std, resizing_of(checkpoint.header))


def _build_model(
    checkpoint: Checkpoint, config: Config, preprocessing: Preprocessing, device: torch.device
) -> nn.Module:
    """The model with its weights, in evaluation mode. Raises: RunError if they do not fit; ConfigError as build_run."""
    share_processors()
    set_deterministic(config.deterministic)
    num_classes = len(checkpoint.header["classes"])
    if ":" not in config.model.name:  # shapes are compared before memory is allocated for whatever the file asks for
        channels, height, width = preprocessing.shape
        supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": num_classes}
        with torch.device("meta"):
            shapes = build(config.model, supplied).state_dict()
        check_weights(shapes, checkpoint.weights, checkpoint.file)
    model = build_model(config, preprocessing, num_classes, device, weights_follow=True)
    checkpoints.load_weights(model, checkpoint)
    model = with_tta(model.eval(), config.tta)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    return model
