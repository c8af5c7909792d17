"""The plain PyTorch way, in a process of its own: what its tutorials show, on a config's data and with its model.

Read from stdin: a JSON line with the config, then one a request; each is answered with one on stdout.
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

from ..config import reader as configs
from ..config.components import build
from ..config.keys import Config
from ..data.splits import InMemory, Split
from .clock import clock_for
from .memory import peak_resident

TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "random_horizontal_flip": transforms.RandomHorizontalFlip,
    "random_affine": transforms.RandomAffine,
    "color_jitter": transforms.ColorJitter,
    "rand_augment": transforms.RandAugment,
    "trivial_augment": transforms.TrivialAugmentWide,
}


class Pictures(Dataset[tuple[Any, int]]):
    """A split that no class of torchvision's reads, as these give theirs: one image at a time, made a PIL image."""

    def __init__(self, split: Split, transform: Callable[[Any], Any]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        split = self.split
        pixels = split.images[index] if isinstance(split, InMemory) else split.decode(split.files[index])
        image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
        return self.transform(image), int(split.labels[index])


class Plain:
    """A model, an optimizer and two loaders, and the loop around them.

    Args:
        config: what is trained.
        about: what softmaxce found out already: the device, the images' shape, mean and std, the number of classes, and
            how many images the splits have: `train`, and `held_out`, which is of torchvision's `test` or not.
    """

    def __init__(self, config: Config, about: dict[str, Any]) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(about["device"])
        self.clock = clock_for(self.device, torch.get_num_threads())
        self.left_out: list[str] = []
        channels, height, width = about["shape"]
        last = [transforms.ToTensor(), transforms.Normalize(about["mean"], about["std"])]
        augmented = transforms.Compose([*self._augmentations((height, width)), *last])
        train, held_out = self._datasets(about, augmented, transforms.Compose(last))
        self.loader = self._loader(train, config.data.batch_size, shuffle=True)
        self.held_out = self._loader(held_out, config.data.eval_batch_size, shuffle=False)
        supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": about["classes"]}
        self.model = build(config.model, supplied).to(self.device)
        with torch.no_grad():
            self.model(torch.zeros(2, channels, height, width, device=self.device))  # shapes lazy layers
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.loss.arguments.get("label_smoothing", 0.0))
        unfused = {"fused": False} if "fused" in config.optimizer.arguments else {}
        optimizer = replace(config.optimizer, arguments={**config.optimizer.arguments, **unfused})
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build(optimizer, {"params": parameters, "model": self.model})

    def _datasets(self, about: dict[str, Any], augmented: Any, plain: Any) -> tuple[Dataset[Any], Dataset[Any]]:
        name, config = self.config.source.name, self.config
        if name in TORCHVISION:
            make, root = getattr(datasets, TORCHVISION[name]), str(config.root)
            train = make(root, train=True, transform=augmented)
            held_out = make(root, train=not about["test"], transform=plain)
            return Subset(train, range(about["train"])), Subset(held_out, range(about["held_out"]))
        from ..build import hold_out, load_source

        source = hold_out(load_source(config), config)
        return Pictures(source.train, augmented), Pictures(source.validation or source.test or source.train, plain)

    def _augmentations(self, size: tuple[int, int]) -> list[Any]:
        found = []
        for component in self.config.augment:
            arguments = dict(component.arguments)
            if arguments.pop("alternate", False):  # torchvision's flips are at random
                self.left_out.append("alternate")
            if component.name == "random_crop":
                fill = arguments.get("padding_mode", "constant")
                fill = "edge" if fill == "replicate" else fill
                found.append(transforms.RandomCrop(size, padding=arguments.get("padding", 4), padding_mode=fill))
            elif component.name in TRANSFORMS:
                found.append(TRANSFORMS[component.name](**arguments))
            else:
                self.left_out.append(component.name)
        return found

    def _loader(self, data: Dataset[Any], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle, pin_memory=self.device.type == "cuda")

    def train(self, batches: int) -> float:
        """Seconds that so many batches take, from the files' pixels to the step; the loss is looked at each time."""
        self.model.train()
        began = self.clock()
        total = 0.0
        for images, labels in itertools.islice(self.loader, batches):
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return self.clock() - began

    @torch.no_grad()
    def evaluate(self, batches: int) -> float:
        """Seconds that so many batches take, loss and hits included."""
        self.model.eval()
        began = self.clock()
        total, hits = 0.0, 0
        for images, labels in itertools.islice(self.held_out, batches):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            total += self.criterion(logits, labels).item() * len(labels)
            hits += int((logits.argmax(1) == labels).sum().item())
        return self.clock() - began


def main() -> None:
    """Answer requests until there are no more."""
    asked = json.loads(sys.stdin.readline())
    plain = Plain(configs.from_dict(asked["config"], "--config", asked["recipe"]), asked["about"])
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"left_out": plain.left_out}
        if "train" in request:
            answer = {"seconds": plain.train(request["train"])}
        elif "evaluate" in request:
            answer = {"seconds": plain.evaluate(request["evaluate"])}
        elif "memory" in request:
            answer = {"bytes": peak_resident()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
