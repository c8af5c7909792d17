"""The menus: every name a config can use, and the code it stands for, written as module:Name.

Nothing registers itself and nothing here is imported before it is used, so a config is checked, and `softmaxce list`
answers, without importing torch. To add to a menu, write the class or function and add its line here.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from . import registry

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
}

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
}

# What `softmaxce check-loss` tries on a loss. These are no components: a config names none of them.
LAWS = {
    "value": "softmaxce.laws.calculus:value",
    "gradient": "softmaxce.laws.calculus:gradient",
    "gradcheck": "softmaxce.laws.calculus:first_derivative",
    "gradgradcheck": "softmaxce.laws.calculus:second_derivative",
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
    """What `torchvision:NAME` can name: the functions under @register_model in the files of torchvision/models."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    names: set[str] = set()
    for file in Path(spec.origin).parent.joinpath("models").glob("*.py"):
        names.update(re.findall(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", file.read_text("utf-8"), re.MULTILINE))
    return tuple(sorted(names))


TORCHVISION = "softmaxce.models.torchvision_models:torchvision_model"  # what torchvision:NAME stands for
MENUS: dict[str, Mapping[str, str]] = {
    "losses": registry.LOSSES,
    "models": registry.MODELS,
    "datasets": registry.DATASETS,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
    "augmentations": registry.AUGMENTATIONS,
}
