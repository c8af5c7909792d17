"""LeNet-5 with ReLU and max-pooling."""

from torch import Tensor, nn

from .max_pool import MaxPool2x2


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling: 61,706 parameters on 28x28 gray images.

    Args:
        in_channels: C.
        image_size: (H, W) in pixels, each at least 12.
        num_classes: K.
    Raises: ValueError if the images are smaller.

    Images [B, C, H, W] -> logits [B, K]. The first layer pads by 2, as the paper's 28x28 digits lie in 32x32 fields.
    """

    def __init__(self, *, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = ((side // 2 - 4) // 2 for side in image_size)
        if min(height, width) < 1:
            raise ValueError(f"images must be at least 12x12, got {image_size[0]}x{image_size[1]}")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            MaxPool2x2(relu=True),
            nn.Conv2d(6, 16, 5),
            MaxPool2x2(relu=True),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        return self.classifier(self.features(images))  # type: ignore[no-any-return]
