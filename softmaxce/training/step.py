"""The training step: forward, backward, clip, check, scale, update, clear, average."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..losses.cuda import check_class_ids
from ..losses.interface import mean_divisor, reduction_of, to_scalar
from ..optim import unwrapped
from ..runtime.device import autocast
from ..runtime.random_state import random_state, restore_random_state
from .cuda_graph import NoGraphError, StaticStep, report_no_graph, static_step
from .nonfinite import NonFiniteMonitor, is_nonfinite
from .run import Run

T = TypeVar("T")


class TrainingStep:
    """The steps of one epoch, each over `grad_accum_steps` batches; the epoch's last may have fewer.

    A step is `begin`, `forward_backward` for each of its batches, `update`. Its gradient is that of the mean loss over
    all of its batches' images, as if they were one batch; losses with `reduction: sum` are averaged over its batches.

    `forward`, `backward` and `apply` are the bare arithmetic, for those that take a step of their own.

    Args:
        run: the run. Make another TrainingStep when its optimizer, its CUDA graph or its optimizer's hooks change.
        epoch: its number, counted from 1.
    """

    def __init__(self, run: Run, epoch: int = 1) -> None:
        if run.config.distillation is not None and run.teacher is None:
            raise TrainingError("distillation: the teacher is not loaded; softmaxce.build_run loads it")
        self.run = run
        self.precision = autocast(run.device, run.precision)
        self.monitor = NonFiniteMonitor(run, epoch)
        self._parameters = run.parameters
        self._is_sum = reduction_of(run.loss) == "sum"
        self._scaled = run.scaler.is_enabled()
        self._update_weights, self._clear = unwrapped.stepper(run.optimizer), unwrapped.clearer(run.optimizer)
        self._base_rates = [group["initial_lr"] for group in run.optimizer.param_groups]
        per_epoch = steps_per_epoch(len(run.train), run.config.grad_accum_steps)
        self._steps_done = (epoch - 1) * per_epoch + steps_per_epoch(run.progress.batch, run.config.grad_accum_steps)
        self._set_group(run.config.grad_accum_steps, run.config.grad_accum_steps * run.train.batch_size)

    def begin(self, index: int) -> None:
        """Begin the step whose first batch is number `index` of the epoch, counted from 0."""
        run, size = self.run, self.run.train.batch_size
        factor = run.schedule(self._steps_done)
        for group, rate in zip(run.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        end = min(index + run.config.grad_accum_steps, len(run.train))
        self._set_group(end - index, min(end * size, run.train.images_per_epoch) - index * size)

    def _set_group(self, batches: int, images: int) -> None:
        accumulated = self.run.config.grad_accum_steps
        full = batches == accumulated and images == accumulated * self.run.train.batch_size
        self._batches, self._images = batches, images
        self._static = self.run.static_step if full else None
        self._divisor: Tensor | None = None

    def forward_backward(self, images: Tensor, targets: Tensor, index: int) -> None:
        """Add a batch's gradients to the step's, and its metrics to the epoch's.

        Args:
            images: [B, C, H, W].
            targets: [B] class ids or [B, K] probabilities.
            index: the batch's number in the epoch, counted from 0.
        Raises: NonFiniteError if the loss is not finite.
        """
        self.monitor.batch = (index, images, targets)
        if self._batches > 1 and isinstance(divisor := mean_divisor(self.run.loss, targets), Tensor):
            self._divisor = divisor if self._divisor is None else self._divisor + divisor
        if self._static is not None and self._static.fits(images, targets):
            self.monitor.note(self._static(images, targets))
        else:
            self._add_gradients(images, targets, self.monitor.check_loss)
        self.run.tally.images += len(targets)

    def _add_gradients(self, images: Tensor, targets: Tensor, check: Callable[[Tensor], T]) -> T:
        """What a CUDA graph captures of a step. Returns: what `check` says of the loss, before the backward pass."""
        logits, loss = self.forward(images, targets)
        answer = check(loss)
        self.backward(self._part_of_mean(loss, targets))
        self.run.tally.add(loss / len(targets) if self._is_sum else loss, logits, targets)
        return answer

    def _part_of_mean(self, loss: Tensor, targets: Tensor) -> Tensor:
        """A batch's part in the mean over the step's batches, but for the factor that `_finish_mean` applies.

        With divisors d, the mean is sum(d * loss) / sum(d). This gives d * loss / images: the sum of the d may be known
        only at the step's last batch, and fp16's gradients stay about as large as those of a mean.
        """
        if self._batches == 1:
            return loss
        if self._is_sum:
            return loss / self._batches
        return loss / (self._images / mean_divisor(self.run.loss, targets))

    def _finish_mean(self) -> None:
        if self._divisor is not None:
            factor = self._images / self._divisor
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def update(self) -> None:
        """Take the step: clip and check the gradients, update the weights and their average, clear the gradients.

        Raises: NonFiniteError if a gradient, or on a GPU the loss of an earlier step, is not finite.
        """
        run, config = self.run, self.run.config
        self._finish_mean()
        norm = None
        if config.clip_grad_norm is not None:
            run.scaler.unscale_(run.optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, config.clip_grad_norm)
        self.monitor.check_gradients(norm)
        self.apply()
        self._steps_done += 1
        moves = config.model_ema_decay is not None and self._steps_done % config.model_ema_steps == 0
        if run.average is not None and moves:
            run.average.update_parameters(run.model)
        self.monitor.after_update()

    def report_failure(self, error: BaseException) -> None:
        """Called with an error that ends the epoch. Nobody waits for a single process."""

    def finish(self) -> None:
        """Wait for the checks of the steps that a GPU still computes. Raises: NonFiniteError, IndexError."""
        self.monitor.finish()
        check_class_ids()

    # -- the bare arithmetic

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and the loss []."""
        with self.precision:
            logits = self.run.model(images)
            loss = to_scalar(self.run.loss(logits, targets))
            return logits, loss if self.run.teacher is None else self.run.teacher.mixed(loss, logits, images)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss [], scaled for fp16."""
        self.run.scaler.scale(loss).backward()

    def apply(self) -> None:
        """Update the weights with the gradients there are, and drop these."""
        if self._scaled:
            self.run.scaler.step(self.run.optimizer)
            self.run.scaler.update()
        else:
            self._update_weights()
        self._clear()


def steps_per_epoch(batches: int, accumulated: int) -> int:
    """Optimizer steps in an epoch of so many batches."""
    return -(-batches // accumulated)


def steps_done(run: Run) -> int:
    """Optimizer steps done of the epoch in progress."""
    return steps_per_epoch(run.progress.batch, run.config.grad_accum_steps)


def make_static_step(run: Run) -> StaticStep:
    """The forward and backward pass for full batches, made on random images; the run stays as it is.

    Raises: NoGraphError with the reason, if a CUDA graph is not possible.
    """
    size, device = run.train.batch_size, run.device
    run.tally.max_pending = 0
    before = random_state()
    try:
        pixels = torch.randint(256, (size, *run.preprocessing.shape), dtype=torch.uint8, device=device)
        images, targets = run.train.prepared(pixels), torch.arange(size, device=device) % len(run.classes)
        if run.mix is not None:
            images, targets = run.mix(images, targets)
    finally:
        restore_random_state(before)
    step = TrainingStep(run)

    def body(images: Tensor, targets: Tensor) -> Tensor:
        return step._add_gradients(images, targets, is_nonfinite)

    sums = (run.tally.loss, run.tally.num_correct)
    copied = run.config.grad_accum_steps > 1 or ":" in run.config.optimizer.name  # a user's may keep the gradients
    return static_step(body, images, targets, (run.model, run.loss), sums, copied=copied)


def try_graph(run: Run) -> None:
    """Make the run's CUDA graph, or say why there is none. Raises: TrainingError if the config insists on one."""
    try:
        run.static_step = make_static_step(run)
    except NoGraphError as error:
        run.use_graph = False
        if run.config.cuda_graph is True:
            raise TrainingError(f"no CUDA graph: {error}; cuda_graph: auto trains without") from None
        report_no_graph(str(error))
