"""Write the 36 images of 6 x 6 pixels in images/: noise, with a little more of one color in each class."""

from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for index, name in enumerate(("blue", "green", "red")):
    folder = Path("images") / name
    folder.mkdir(parents=True)
    for number in range(12):
        pixels = rng.integers(0, 16, (6, 6, 3), dtype=np.uint8) * 12
        pixels[..., 2 - index] += 25
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
