"""The registries: every name that a config can use, and the code it stands for, as module:Name.

Nothing registers itself, and the code is imported only when it is used, so that a config is checked and
`softmaxce list` answers without importing torch. To register a component, add its line here.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import suggestion
from .signatures import top_level_definitions

LOSSES = {
    "softmax_cross_entropy": "softmaxce.losses.builtin:softmax_cross_entropy",
    "torch_cross_entropy": "softmaxce.losses.builtin:torch_cross_entropy",
    "focal": "softmaxce.losses.variants.focal:FocalLoss",
    "poly": "softmaxce.losses.variants.poly:PolyLoss",
    "generalized_cross_entropy": "softmaxce.losses.variants.generalized:GeneralizedCrossEntropy",
    "symmetric_cross_entropy": "softmaxce.losses.variants.symmetric:SymmetricCrossEntropy",
    "logit_adjusted": "softmaxce.losses.variants.logit_adjusted:LogitAdjustedCrossEntropy",
    "temperature": "softmaxce.losses.variants.temperature:TemperatureCrossEntropy",
    "softcap": "softmaxce.losses.variants.softcap:SoftcapCrossEntropy",
    "z_loss": "softmaxce.losses.variants.z_loss:ZLossCrossEntropy",
}

MODELS = {
    "linear": "softmaxce.models.linear:linear",
    "mlp": "softmaxce.models.mlp:mlp",
    "lenet": "softmaxce.models.lenet:LeNet",
    "cnn": "softmaxce.models.cnn:cnn",
    "resnet9": "softmaxce.models.resnet:resnet9",
    "resnet18": "softmaxce.models.resnet:resnet18",
    "resnet34": "softmaxce.models.resnet:resnet34",
    "resnet50": "softmaxce.models.resnet:resnet50",
    "wide_resnet": "softmaxce.models.resnet:wide_resnet",
    "airbench": "softmaxce.models.airbench:Airbench",
}

DATASETS = {
    "digits": "softmaxce.data.datasets:digits",
    "mnist": "softmaxce.data.datasets:mnist",
    "fashion_mnist": "softmaxce.data.datasets:fashion_mnist",
    "kmnist": "softmaxce.data.datasets:kmnist",
    "emnist": "softmaxce.data.datasets:emnist",
    "cifar10": "softmaxce.data.datasets:cifar10",
    "cifar100": "softmaxce.data.datasets:cifar100",
    "svhn": "softmaxce.data.datasets:svhn",
    "image_folder": "softmaxce.data.folder:image_folder",
    "image_list": "softmaxce.data.image_list:image_list",
    "shards": "softmaxce.data.shards:shards",
    "synthetic": "softmaxce.data.datasets:synthetic",
}

AUGMENTATIONS = {
    "random_crop": "softmaxce.data.augment:RandomCrop",
    "random_horizontal_flip": "softmaxce.data.augment:RandomHorizontalFlip",
    "random_affine": "softmaxce.data.augment:RandomAffine",
    "cutout": "softmaxce.data.augment:Cutout",
    "color_jitter": "softmaxce.data.augment:ColorJitter",
    "rand_augment": "softmaxce.data.augment:RandAugment",
    "trivial_augment": "softmaxce.data.augment:TrivialAugment",
    "random_resized_crop": "softmaxce.data.keyed_augment:RandomResizedCrop",
    "random_erasing": "softmaxce.data.keyed_augment:RandomErasing",
    "auto_augment": "softmaxce.data.keyed_augment:AutoAugment",
    "aug_mix": "softmaxce.data.keyed_augment:AugMix",
}
FROM_WHOLE = ("random_resized_crop",)  # augmentations that cut from whole images
# Augmentations of Pillow's or torchvision's, for gray and color images of 8 bits.
PHOTOGRAPHS = ("rand_augment", "trivial_augment", "auto_augment", "aug_mix")
OWN_IMAGES = ("image_folder", "image_list", "shards")  # data sets of the user's files

OPTIMIZERS = {
    "sgd": "torch.optim.sgd:SGD",
    "adam": "torch.optim.adam:Adam",
    "adamw": "torch.optim.adamw:AdamW",
    "nadam": "torch.optim.nadam:NAdam",
    "radam": "torch.optim.radam:RAdam",
    "adamax": "torch.optim.adamax:Adamax",
    "adagrad": "torch.optim.adagrad:Adagrad",
    "adadelta": "torch.optim.adadelta:Adadelta",
    "rmsprop": "torch.optim.rmsprop:RMSprop",
    "muon": "softmaxce.optim.muon:Muon",
}

SCHEDULES = {
    "constant": "softmaxce.optim.schedules:constant",
    "step": "softmaxce.optim.schedules:step",
    "cosine": "softmaxce.optim.schedules:cosine",
    "linear": "softmaxce.optim.schedules:linear",
    "one_cycle": "softmaxce.optim.schedules:one_cycle",
    "reduce_on_plateau": "softmaxce.optim.plateau:ReduceOnPlateau",
}

# What `softmaxce check-loss` tests. These are not components: a config names none of them.
LAWS = {
    "value": "softmaxce.laws.calculus:value",
    "gradient": "softmaxce.laws.calculus:gradient",
    "gradcheck": "softmaxce.laws.calculus:first_derivative",
    "gradgradcheck": "softmaxce.laws.calculus:second_derivative",
    "monotonic": "softmaxce.laws.classification:monotonic",
    "minimum": "softmaxce.laws.classification:minimum",
    "saturation": "softmaxce.laws.classification:saturation",
    "shift": "softmaxce.laws.symmetries:shift",
    "permutation": "softmaxce.laws.symmetries:permutation",
    "rows": "softmaxce.laws.symmetries:rows",
    "reductions": "softmaxce.laws.symmetries:reductions",
    "one_hot": "softmaxce.laws.symmetries:class_ids",
    "soft_targets": "softmaxce.laws.symmetries:soft_targets",
    "finite": "softmaxce.laws.numbers:finite",
    "dtypes": "softmaxce.laws.numbers:dtypes",
    "autocast": "softmaxce.laws.numbers:autocast",
    "determinism": "softmaxce.laws.transforms:determinism",
    "vmap": "softmaxce.laws.transforms:vmap",
    "compile": "softmaxce.laws.transforms:compiles",
}


@cache
def torchvision_names() -> tuple[str, ...]:
    """The models of torchvision: the functions under @register_model in the files of torchvision/models."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    names: set[str] = set()
    for file in Path(spec.origin).parent.joinpath("models").glob("*.py"):
        names.update(re.findall(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", file.read_text("utf-8"), re.MULTILINE))
    return tuple(sorted(names))


@cache
def timm_names() -> tuple[str, ...]:
    """The models of timm: the functions under @register_model in the files of timm/models."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return ()
    names: set[str] = set()
    for file in Path(spec.origin).parent.joinpath("models").glob("*.py"):
        names.update(re.findall(r"^@register_model\ndef (\w+)", file.read_text("utf-8"), re.MULTILINE))
    return tuple(sorted(names))


# module:Name or file.py:Name, as Python and as JSON Schema read it: identifiers of ASCII, or of any letters beyond it.
_IDENTIFIER = r"[^\x00-@\[-^`{-\x7f][^\x00-/:-@\[-^`{-\x7f]*"
OWN_CODE = rf"^(.*\.py|{_IDENTIFIER}(\.{_IDENTIFIER})*):{_IDENTIFIER}$(?!\n)"


@dataclass(frozen=True)
class Family:
    """Components with a common prefix, `torchvision:resnet50`, that one function builds from the rest of the name.

    Attributes:
        prefix: before the colon.
        target: the function, module:Name.
        argument: the argument of the function that takes the rest of the name.
        names: lists what can follow the colon; nothing, if its package is not installed.
        tagged: the name may have a tag, after a dot.
        missing: the message where its package is not installed.
    """

    prefix: str
    target: str
    argument: str
    names: Callable[[], tuple[str, ...]]
    tagged: bool = False
    missing: str = ""

    def check(self, name: str) -> None:
        """Raises: ValueError, with the likely remedy, if there is no such model."""
        known, base = self.names(), name.partition(".")[0] if self.tagged else name
        if not known and self.missing:
            raise ValueError(self.missing)
        if base not in known:
            raise ValueError(f"{self.prefix} has no model '{name}'{suggestion(base, known)}")


@dataclass(frozen=True)
class Registry:
    """The components that one section of a config can name.

    Attributes:
        kind: in the plural, as in `softmaxce list losses`.
        targets: name -> module:Name.
        supplied: the arguments that softmaxce passes to a component that takes them, so that a config never has to.
        called_with: the number of arguments a component is called with once it is built; 0 if it is not called. Where
            this is not 0, a plain function, loss(logits, targets), can itself be the component.
        families: components with a common prefix.
    """

    kind: str
    targets: Mapping[str, str]
    supplied: tuple[str, ...] = ()
    called_with: int = 0
    families: tuple[Family, ...] = ()

    def resolve(self, name: str) -> tuple[str, dict[str, Any]]:
        """The module:Name that a name in a config stands for, and the arguments that the name implies.

        Raises: ValueError, with the likely remedy, if the name is neither registered nor a module:Name.
        """
        if name in self.targets:
            return self.targets[name], {}
        prefix, colon, rest = name.rpartition(":")
        for family in self.families:
            if prefix == family.prefix:
                family.check(rest)
                return family.target, {family.argument: rest}
        if colon:
            if re.search(OWN_CODE, name):
                return name, {}
            raise ValueError(
                f"'{name}' is not of the form module:Name; write for example mylab.losses:Tilted or ./tilted.py:Tilted"
            )
        if name.endswith(".py"):
            raise ValueError(f"'{name}' is a file, not a name in it; {_names_in(name)}")
        hint = suggestion(name, self.targets) or f"; `softmaxce list {self.kind}` shows all"
        raise ValueError(f"there is no '{name}' among the {self.kind}{hint}")


def _names_in(file: str) -> str:
    """The remedy for a file without a name: the functions and classes that it defines, or why it cannot be read."""
    try:
        names = [name for name in top_level_definitions(file) if not name.startswith("_")]
    except ValueError as error:
        return str(error)
    return f"write {' or '.join(f'{file}:{name}' for name in names) or f'{file}:NAME, but it defines none'}"


TORCHVISION = Family(
    "torchvision", "softmaxce.models.torchvision_models:torchvision_model", "architecture", torchvision_names
)
TIMM = Family(
    "timm",
    "softmaxce.models.timm_models:timm_model",
    "architecture",
    timm_names,
    tagged=True,
    missing="timm is not installed; install it with: pip install 'softmaxce[timm]'",
)

# The section of a config -> what it can name.
REGISTRIES = {
    "loss": Registry("losses", LOSSES, ("num_classes", "class_counts"), called_with=2),
    "model": Registry(
        "models",
        MODELS,
        ("in_channels", "num_classes", "image_size", "pretrained_weights"),
        families=(TORCHVISION, TIMM),
    ),
    "data": Registry("datasets", DATASETS, ("root", "download", "seed")),
    "optimizer": Registry("optimizers", OPTIMIZERS, ("params", "model")),
    "schedule": Registry("schedules", SCHEDULES, ("step", "steps", "steps_per_epoch")),
    "augment": Registry("augmentations", AUGMENTATIONS, called_with=1),
}
