"""The keys whose value `auto` becomes a number before anything is built: `data.size` and `data.batch_size`.

A run records the number, and Config.resolved has the reason. (Other keys that take `auto` keep it.)
"""

from .components import Component
from .registry import OWN_IMAGES

AUTO = "auto"
NO_SIZE = (
    "auto is the size that a network of timm or torchvision was pretrained with, and {} has none; give a number: 64"
)


def has_automatic_size(source: Component) -> bool:
    """Whether a data set's images are to get the size of the model's pretraining: `data.size: auto`."""
    return source.name in OWN_IMAGES and source.arguments.get("size") == AUTO
