"""What two and four processes do, as seen from inside: run by launch.py, judged in test_claims.py.

Each function is called in every process of the group, in the same order, and returns something for JSON. A single run,
for comparison, is made by each process for itself.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.config.keys import Config
from softmaxce.data.batches import Batches
from softmaxce.data.datasets import synthetic
from softmaxce.data.decode import Decode
from softmaxce.data.folder import image_folder
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.splits import Dataset, InMemory
from softmaxce.errors import DataError, SoftmaxceError
from softmaxce.runs.same_run import same_weights
from softmaxce.runs.teacher import load
from softmaxce.runtime.process_group import SINGLE, ProcessGroup, join
from softmaxce.runtime.random_state import random_state
from softmaxce.runtime.signals import Signals
from softmaxce.training import step_reduction
from softmaxce.training.evaluation import evaluate_epoch, predict
from softmaxce.training.loop import fit
from softmaxce.training.metrics import METRICS
from softmaxce.training.run import Run

from ..helpers import config as small

LENET = {"model": "lenet", "optimizer": {"name": "adam", "lr": 0.001}, "schedule": "constant", "epochs": 1}
DATA = {"data__train": 523, "data__size": 28, "data__batch_size": 32, "data__validation": None}


def lenet(**changes: Any) -> Config:
    """A config in which nothing is random but the order of the images."""
    return small(**LENET | DATA | changes)


def steps(run: Run, number: int) -> tuple[list[float], list[Tensor]]:
    """Train; the mean loss of each step, and the weights after the last."""
    seen: list[tuple[float, int]] = [(0.0, 0)]
    optimizer_step = type(run.optimizer).step

    class Enough(BaseException):
        pass

    class Watched(type(run.optimizer)):  # type: ignore[misc]
        def step(self, *arguments: Any) -> None:
            optimizer_step(self, *arguments)
            seen.append((run.tally.loss.item(), run.tally.images))
            if len(seen) > number:
                raise Enough

    run.optimizer.__class__ = Watched
    try:
        for _ in fit(run):
            pass
    except Enough:
        pass
    losses = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(seen) if b[1] > a[1]]
    return losses, [p.detach().clone() for p in run.parameters]


def largest(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference between two lists of numbers or tensors."""
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return max(float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max()) for a, b in zip(ours, theirs, strict=True))


def as_one_process(group: ProcessGroup, config: Config, number: int) -> dict[str, float]:
    """How far the losses and the weights of the group's training are from those of a single process."""
    found = []
    for each in (group, SINGLE):
        run = build_run(config, group=each)
        load(run, str)  # the teacher, if the config names one
        found.append(steps(run, number))
    (losses, weights), (alone, weights_alone) = found
    return {"loss": largest(losses, alone), "weights": largest(weights, weights_alone), "steps": len(alone)}


class PerImage(nn.Module):
    """A user's loss, one number per image, with a weight for each class that only it knows."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none") * (1 + targets % 3)


class PartlyUsed(nn.Module):
    """A network with a parameter that is never used, and a constant buffer with infinity."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels * image_size[0] * image_size[1], num_classes)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([0.1, float("-inf")]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class RaisesOnRank1(nn.Module):
    """A user's loss that fails in one process, at its fourth call in training."""

    rank, calls = 0, 0

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        RaisesOnRank1.calls += torch.is_grad_enabled() and len(targets) > 2
        if self.rank == 1 and RaisesOnRank1.calls == 4:
            raise ValueError("a wrong turn")
        return nn.functional.cross_entropy(logits, targets)


class NanOnRank1(RaisesOnRank1):
    """Likewise, with a loss that is not finite."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        RaisesOnRank1.calls += torch.is_grad_enabled() and len(targets) > 2
        loss = nn.functional.cross_entropy(logits, targets)
        return loss * float("nan") if self.rank == 1 and RaisesOnRank1.calls == 4 else loss


class FailsInBackward(nn.Module):
    """A user's network whose backward pass fails in one process, in its fourth step, halfway."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels * image_size[0] * image_size[1], 8)
        self.second = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(Failing.apply(self.first(images.flatten(1))))
        return logits


class Failing(torch.autograd.Function):
    """The identity, until it fails."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        RaisesOnRank1.calls += 1
        if RaisesOnRank1.rank == 1 and RaisesOnRank1.calls == 4:
            raise ValueError("a wrong turn back")
        return gradient


class Reentrant(nn.Module):
    """A user's network with a block that is applied twice, whose gradients are added up one after the other."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels * image_size[0] * image_size[1], 8)
        self.block = nn.Linear(8, 8)
        self.last = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images.flatten(1))
        for _ in range(2):
            values = checkpoint(self.block, values, use_reentrant=True)
        logits: Tensor = self.last(values)
        return logits


@contextlib.contextmanager
def small_buckets() -> Iterator[None]:
    """Every parameter is a bucket of its own."""
    before = step_reduction.BUCKET, step_reduction.MANY
    step_reduction.BUCKET, step_reduction.MANY = 1, 0
    try:
        yield
    finally:
        step_reduction.BUCKET, step_reduction.MANY = before


# -- the claims


def plain(group: ProcessGroup) -> Any:
    return as_one_process(group, lenet(epochs=4), 60)


def growing(group: ProcessGroup) -> Any:
    pooled = {"name": "cnn", "channels": [4, 8], "batch_norm": False}
    return as_one_process(group, lenet(epochs=2, model=pooled, progressive_resizing={}), 34)


def fine_tuned(group: ProcessGroup) -> Any:
    tuning = {"freeze": "backbone", "unfreeze_epoch": 2, "layer_decay": 0.8}
    return as_one_process(group, lenet(epochs=4, fine_tuning=tuning, no_decay="auto"), 60)


def weighted(group: ProcessGroup) -> Any:
    return as_one_process(group, lenet(loss={"name": "softmax_cross_entropy", "weight": [*range(1, 11)]}), 12)


def ignored(group: ProcessGroup) -> Any:
    return as_one_process(group, lenet(loss={"name": "softmax_cross_entropy", "ignore_index": 3}), 12)


def summed(group: ProcessGroup) -> Any:
    loss = {"name": "softmax_cross_entropy", "reduction": "sum"}
    return as_one_process(group, lenet(loss=loss, optimizer={"name": "sgd", "lr": 0.0001}), 12)


def accumulated(group: ProcessGroup) -> Any:
    loss = {"name": "softmax_cross_entropy", "weight": [*range(1, 11)]}
    return as_one_process(group, lenet(grad_accum_steps=3, clip_grad_norm=0.5, loss=loss), 5)


def per_image(group: ProcessGroup) -> Any:
    return as_one_process(group, lenet(loss="tests.distributed.claims:PerImage"), 12)


def augmented(group: ProcessGroup) -> Any:
    names = [
        {"name": "random_crop", "padding": 2},
        "random_horizontal_flip",
        {"name": "random_affine", "degrees": 10, "translate": [0.1, 0.1]},
        {"name": "cutout", "size": 4},
        {"name": "color_jitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    ]
    mixed = {"mixup_alpha": 0.4, "cutmix_alpha": 0.4, "data__channels": 3}
    return as_one_process(group, lenet(data__augment=names, **mixed), 12)


def uneven(group: ProcessGroup) -> Any:
    """Batches of 7, the last of which has fewer."""
    changes: dict[str, Any] = {"data__batch_size": 7, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}}
    return [as_one_process(group, lenet(**changes, data__train=28 + last), 10) for last in (2, 3, 4)]


def distilled(group: ProcessGroup) -> Any:
    teacher = lenet(optimizer={"name": "sgd", "lr": 0.01})
    group.from_rank_0(lambda: str(session.train(build_run(teacher), "teacher").folder))
    return as_one_process(group, lenet(distillation={"teacher": "teacher", "temperature": 2}), 12)


def averaged(group: ProcessGroup) -> Any:
    """How far the weights that two epochs average are from one process's; those with batch norm, in all processes."""

    def trained(batch_norm: bool, group: ProcessGroup) -> list[Tensor]:
        model = {"name": "cnn", "channels": [4], "batch_norm": batch_norm}
        run = build_run(lenet(epochs=3, model=model, swa={"start_epoch": 2}), group=group)
        for _ in fit(run):
            pass
        assert run.average is not None
        return [value.float() for value in run.average.module.state_dict().values()]

    sums = [float(values.double().sum()) for values in trained(True, group)]
    return [largest(trained(False, group), trained(False, SINGLE)), group.gather(tuple(sums))]


def unused_parameter(group: ProcessGroup) -> Any:
    run = build_run(small(model="tests.distributed.claims:PartlyUsed", model_ema_decay=0.9), group=group)
    steps(run, 3)
    model: Any = run.model
    return {"unused": model.unused.tolist(), "gradient": model.unused.grad is None, "mask": model.mask.tolist()[0]}


def bucketed(group: ProcessGroup) -> Any:
    """Whether buckets change a bit of the weights, and the most that were begun before a backward pass had ended."""
    tuning = {"freeze": "backbone", "unfreeze_epoch": 2}
    configs = {
        "accumulated": lenet(epochs=2, grad_accum_steps=3, clip_grad_norm=0.5, fine_tuning=tuning),
        "partly used": small(model="tests.distributed.claims:PartlyUsed"),
        "reentrant": small(model="tests.distributed.claims:Reentrant"),
    }
    results, begun = {}, []
    reduce = step_reduction.StepReduction._reduce

    def recorded(self: step_reduction.StepReduction, sums: Tensor, failed: bool) -> list[float]:
        begun.append(len(self.begun))
        return reduce(self, sums, failed)

    step_reduction.StepReduction._reduce = recorded  # type: ignore[method-assign]
    try:
        for name, config in configs.items():
            _, whole = steps(build_run(config, group=group), 10)
            begun.clear()
            with small_buckets():
                _, weights = steps(build_run(config, group=group), 10)
            same = all(torch.equal(a, b) for a, b in zip(whole, weights, strict=True))
            results[name] = [same, max(begun), len(begun)]
    finally:
        step_reduction.StepReduction._reduce = reduce  # type: ignore[method-assign]
    return results


def random_in_buckets(group: ProcessGroup) -> Any:
    """As everything_random, and whether a second training gives the same bits."""
    with small_buckets():
        first, second = (steps(build_run(small(), group=group), 6)[1] for _ in range(2))
        return [*everything_random(group), all(torch.equal(a, b) for a, b in zip(first, second, strict=True))]


def one_fails_in_backward(group: ProcessGroup) -> Any:
    RaisesOnRank1.rank, RaisesOnRank1.calls = group.rank, 0
    with small_buckets():
        run = build_run(small(model="tests.distributed.claims:FailsInBackward"), group=group)
        RaisesOnRank1.calls = 0
        return ended_by(group, lambda: session.train(run, "backward", signals=group.signals))


def nan_in_buckets(group: ProcessGroup) -> Any:
    with small_buckets():
        return one_is_nan(group, "nan in buckets")


def images_of_an_epoch(group: ProcessGroup) -> Any:
    count = 5003
    images = (torch.arange(count)[:, None, None, None] // torch.tensor([1, 256]).view(2, 1, 1) % 256).to(torch.uint8)
    split = InMemory(images, torch.zeros(count, dtype=torch.int64))
    batches = Batches(
        split,
        Preprocessing((2, 1, 1), (0.0, 0.0), (1 / 255, 1 / 255)),
        batch_size=64,
        device=torch.device("cpu"),
        shuffle_seed=1,
        group=group,
    )
    own: list[int] = []
    for index, (pixels, _) in enumerate(batches.epoch(1)):
        if group.share(batches.images_in(index)):
            own += (pixels[:, 0, 0, 0] + 256 * pixels[:, 1, 0, 0]).round().long().tolist()
    return own


def with_ddp(group: ProcessGroup) -> Any:
    """20 steps on the same shares by torch's DistributedDataParallel: how far the weights are from ours."""
    config = lenet(epochs=2, optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9})
    run, other = (build_run(config, group=group) for _ in range(2))
    model = nn.parallel.DistributedDataParallel(other.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def shares() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in (1, 2):
            yield from other.train.epoch(epoch)

    for index, (images, labels) in enumerate(shares()):
        if index == 20:
            break
        part = len(labels) * group.world_size / other.train.images_in(index % len(other.train))  # DDP takes the mean
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(images), labels) * part).backward()
        optimizer.step()
    _, weights = steps(run, 20)
    return largest(weights, [p.detach() for p in other.model.parameters()])


def everything_random(group: ProcessGroup) -> Any:
    """The same bits in all processes after each epoch, of weights, statistics, average, optimizer and generators."""
    config = small(
        model={"name": "cnn", "channels": [4, 8], "dropout": 0.3},
        optimizer={"name": "muon", "lr": 0.01},
        mixup_alpha=0.3,
        cutmix_alpha=0.3,
        model_ema_decay=0.9,
        clip_grad_norm=0.5,
        grad_accum_steps=2,
        data__batch_size=10,
        data__augment=["trivial_augment", {"name": "random_affine", "degrees": 10}, "tests.distributed.claims:draws"],
    )
    run = build_run(config, group=group)
    same = []
    for epoch in fit(run):
        state = [t for s in run.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        other = [float(t.double().sum()) for t in (*state, *run.model.buffers())]
        generators = json.dumps(random_state(), default=lambda value: value.tolist())
        same.append(same_weights(run) and len(set(group.gather((tuple(other), generators, epoch.train)))) == 1)
    return same


def draws(images: Tensor) -> Tensor:
    """A user's augmentation, which draws another number of random numbers in every process."""
    torch.rand(int(torch.randint(100, ())))
    return images


def evaluated(group: ProcessGroup) -> Any:
    config = small(data__test=203, data__eval_batch_size=16, model={"name": "cnn", "channels": [4]}, metrics=[*METRICS])
    run, alone = build_run(config, group=group), build_run(config)
    assert run.test is not None
    assert alone.test is not None
    ours, theirs = predict(run.model, run.test, group=group), predict(alone.model, alone.test)
    scores = evaluate_epoch(run, run.test), evaluate_epoch(alone, alone.test)
    return [*(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), scores[0] == scores[1]]


def ended_by(group: ProcessGroup, train: Callable[[], object]) -> tuple[str, int, str]:
    """The class, the status and the message of the error that ends a training."""
    try:
        train()
    except SoftmaxceError as error:
        group.failed_together = False
        return type(error).__name__, error.status, str(error)
    return "", 0, ""


def one_raises(group: ProcessGroup) -> Any:
    RaisesOnRank1.rank, RaisesOnRank1.calls = group.rank, 0
    run = build_run(small(loss="tests.distributed.claims:RaisesOnRank1"), group=group)
    return ended_by(group, lambda: session.train(run, "raises", signals=group.signals))


def one_is_nan(group: ProcessGroup, folder: str = "nan") -> Any:
    RaisesOnRank1.rank, RaisesOnRank1.calls = group.rank, 0
    run = build_run(small(loss="tests.distributed.claims:NanOnRank1", data__batch_size=16), group=group)
    stopped = ended_by(group, lambda: session.train(run, folder, signals=group.signals))
    RaisesOnRank1.calls = 0
    skipping = small(loss="tests.distributed.claims:NanOnRank1", data__batch_size=16, on_nonfinite="skip")
    run = build_run(skipping, group=group)
    skipped = ended_by(group, lambda: session.train(run, f"{folder}2", signals=group.signals))
    return [stopped, skipped, run.progress.nonfinite, same_weights(run)]


def one_image_fewer_on_rank_1() -> Dataset:
    """A user's data set, of which a machine lacks an image."""
    whole = synthetic(train=96, test=40)
    count = 96 - (RaisesOnRank1.rank == 1)
    return replace(whole, train=whole.train.take(torch.arange(count)))


def other_images(group: ProcessGroup) -> Any:
    RaisesOnRank1.rank = group.rank
    data = {"name": "tests.distributed.claims:one_image_fewer_on_rank_1", "batch_size": 32}
    run = build_run(small(data=data), group=group)
    return ended_by(group, lambda: session.train(run, "images", signals=group.signals))


def other_config(group: ProcessGroup) -> Any:
    changes: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.1}} if group.rank == 1 else {}
    run = build_run(small(**changes), group=group)
    return ended_by(group, lambda: session.train(run, "config", signals=group.signals))


def other_version(group: ProcessGroup) -> Any:
    from softmaxce.runs import same_run

    real = same_run.environment
    if group.rank == 1:
        same_run.environment = lambda device: {**real(device), "torch": "9.9"}  # type: ignore[assignment]
    run = build_run(small(), group=group)
    try:
        return ended_by(group, lambda: session.train(run, "version", signals=group.signals))
    finally:
        same_run.environment = real


def one_cannot_build(group: ProcessGroup) -> Any:
    config = small(model={"name": "mlp", "hidden": [4]}, data__train=20 if group.rank == 1 else 96, data__validation=50)
    return ended_by(group, lambda: build_run(config, group=group))


def one_misses_a_collective(group: ProcessGroup) -> Any:
    def block() -> None:
        with group.together():
            if group.rank == 1:
                raise DataError("images: there is no such folder")
            group.gather(None)

    return ended_by(group, block)


def decoded(group: ProcessGroup) -> Any:
    """How many files each process decodes of an image folder."""
    folder = Path("images")
    if group.rank == 0:
        for number in range(12):
            file = folder / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * number, 100, 50)).save(file)
    group.gather(None)
    real, calls = Decode.as_decoded, []

    def counted(self: Decode, file: str) -> Any:
        calls.append(file)
        return real(self, file)

    Decode.as_decoded = counted  # type: ignore[method-assign]
    try:
        image_folder(8, root="images")
    finally:
        Decode.as_decoded = real  # type: ignore[method-assign]
    return len(calls)


CLAIMS: dict[int, tuple[Callable[[ProcessGroup], Any], ...]] = {
    2: (
        *(plain, fine_tuned, distilled, weighted, ignored, summed, accumulated, per_image, augmented, uneven),
        *(unused_parameter, averaged),
        *(images_of_an_epoch, everything_random, evaluated, one_raises, one_is_nan, other_images, other_config),
        *(other_version, one_cannot_build, one_misses_a_collective, decoded, with_ddp, growing),
        *(bucketed, one_fails_in_backward, nan_in_buckets),
    ),
    4: (
        *(weighted, accumulated, augmented, uneven, images_of_an_epoch, evaluated, one_raises),
        *(random_in_buckets, one_fails_in_backward),
    ),
}


def main() -> None:
    """Join the group, and write what each claim's function returns."""
    signals = Signals()
    group = join(signals)
    results = {claim.__name__: claim(group) for claim in CLAIMS[group.world_size]}
    (Path(sys.argv[1]) / f"{group.rank}.json").write_text(json.dumps(results))
    group.close()


if __name__ == "__main__":
    from tests.distributed import claims  # not this copy of it: configs name the classes in that one

    claims.main()
