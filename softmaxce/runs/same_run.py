"""Whether all processes that train a run together have the same versions, config and images; and the same weights."""

import torch
from torch import Tensor, nn

from ..data.fingerprint import count_in, fingerprint
from ..errors import RunError
from ..runtime.environment import environment
from ..training.run import Run
from .folder import SPLITS
from .listing import differing
from .resume import rule_of

VERSIONS = ("softmaxce", "python", "torch", "torchvision", "numpy", "pillow")


def check_same_run(run: Run) -> None:
    """Refuse processes that would train different runs. Raises: RunError, in all of them, with the first difference."""
    group = run.group
    about = environment(run.device)
    versions = {name: str(about[name]) for name in VERSIONS} | {"device": run.device.type, "precision": run.precision}
    images = {name: fingerprint(batches.split) for name in SPLITS if (batches := getattr(run, name)) is not None}
    with group.together():
        reports = group.gather((versions, run.config.to_dict(), images))
        for rank, (their_versions, their_config, their_images) in enumerate(reports):
            who = f"process {rank} of {group.world_size}"
            for name, value in reports[0][0].items():
                if their_versions[name] != value:
                    raise RunError(
                        f"{who} has {name} {their_versions[name]}, and process 0 has {value}; all need the same"
                    )
            keys = differing([reports[0][1], their_config])
            for key, values in keys.items():
                if rule_of(key, run.config.source.name).changes_metrics:
                    raise RunError(f"{who} has another config: {key} is {values[1]!r}, and {values[0]!r} in process 0")
            _compare_images(who, reports[0][2], their_images)


def _compare_images(who: str, images: dict[str, str], theirs: dict[str, str]) -> None:
    for name in images.keys() | theirs.keys():
        one, other = images.get(name, ""), theirs.get(name, "")
        if one == other:
            continue
        counts = count_in(other) or 0, count_in(one) or 0
        numbers = f"{counts[0]:,} images, and process 0 has {counts[1]:,}" if counts[0] != counts[1] else "other images"
        raise RunError(f"{who} has a {name} split of {numbers}; every machine needs the same files")


def share_state(run: Run) -> None:
    """Give all processes the weights, buffers and loss of rank 0: what they derive from images may differ in rounding.

    Raises: RunError if their models differ.
    """
    tensors = _state(run)
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    with run.group.together():
        if any(other != shapes for other in run.group.gather(shapes)):
            raise RunError("the processes have built different models from the same config")
    run.group.broadcast_tensors(tensors)


def same_weights(run: Run) -> bool:
    """Whether all processes have the same weights, to the bit; otherwise all get those of rank 0."""
    tensors = _state(run)
    own = [_checksum(tensor) for tensor in tensors]
    if all(other == own for other in run.group.gather(own)):
        return True
    run.group.broadcast_tensors(tensors)
    return False


def _state(run: Run) -> list[Tensor]:
    modules: list[nn.Module] = [run.model]
    modules += [run.average.module] if run.average is not None else []
    modules += [run.loss] if isinstance(run.loss, nn.Module) else []
    tensors = [tensor.detach() for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return [tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor for tensor in tensors]


def _checksum(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    flat = tensor.contiguous().reshape(-1)
    words = flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.int8)
    return int(words.sum(dtype=torch.int64))
