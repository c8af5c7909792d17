"""Training as in PyTorch's tutorials, on a config's data and with its model, in a process of its own.

Reads JSON lines from stdin: the config, then requests; each is answered with a JSON line on stdout.
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
    """A split as torchvision's data sets are: one image at a time, as a PIL image."""

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
    """A model, an optimizer, two loaders and the training loop.

    Args:
        config: of the run.
        about: what softmaxce has determined: the device, the images' shape, mean and std, the number of classes, the
            number of images of the splits `train` and `held_out`, and whether `held_out` is the test split.
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
        self.loader = self._loader(train, config.data.images_per_batch, shuffle=True)
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

    def _datasets(self, about: dict[str, Any], augmented: Any, evaluated: Any) -> tuple[Dataset[Any], Dataset[Any]]:
        name, config = self.config.source.name, self.config
        if name in TORCHVISION:
            make, root = getattr(datasets, TORCHVISION[name]), str(config.root)
            train = make(root, train=True, transform=augmented)
            held_out = make(root, train=not about["test"], transform=evaluated)
            return Subset(train, range(about["train"])), Subset(held_out, range(about["held_out"]))
        from ..build import load_source
        from ..data.held_out import hold_out

        source = hold_out(load_source(config), config)
        return Pictures(source.train, augmented), Pictures(source.validation or source.test or source.train, evaluated)

    def _augmentations(self, size: tuple[int, int]) -> list[Any]:
        augmentations = []
        for component in self.config.augment:
            arguments = dict(component.arguments)
            if arguments.pop("alternate", False):  # torchvision's flips are random
                self.left_out.append("alternate")
            if component.name == "random_crop":
                fill = arguments.get("padding_mode", "constant")
                fill = "edge" if fill == "replicate" else fill
                augmentations.append(
                    transforms.RandomCrop(size, padding=arguments.get("padding", 4), padding_mode=fill)
                )
            elif component.name in TRANSFORMS:
                augmentations.append(TRANSFORMS[component.name](**arguments))
            else:
                self.left_out.append(component.name)
        return augmentations

    def _loader(self, data: Dataset[Any], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle, pin_memory=self.device.type == "cuda")

    def train(self, batches: int) -> float:
        """Seconds for so many batches, from pixels to the optimizer's step, reading the loss of each."""
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
        """Seconds for so many batches, loss and number of correct predictions included."""
        self.model.eval()
        began = self.clock()
        total, num_correct = 0.0, 0
        for images, labels in itertools.islice(self.held_out, batches):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            total += self.criterion(logits, labels).item() * len(labels)
            num_correct += int((logits.argmax(1) == labels).sum().item())
        return self.clock() - began


def main() -> None:
    """Answer requests until stdin ends."""
    setup = json.loads(sys.stdin.readline())
    plain = Plain(configs.from_dict(setup["config"], "--config", setup["recipe"]), setup["about"])
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
