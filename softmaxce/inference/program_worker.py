"""A process that runs a torch.export file for its parent: images on stdin, probabilities on stdout.

It imports nothing of softmaxce, so that the file is known to work without it. Started as a script by ProgramProcess:
`python -P program_worker.py FILE CHANNELS HEIGHT WIDTH CLASSES DEPTH`. A request is the number of images, 8 bytes, and
their values; the answer is the seconds that the program took, a float64, and the probabilities, float32.
"""

import signal
import struct
import sys
import time
import warnings

import numpy as np


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's: it closes stdin
    file, (channels, height, width, classes), depth = sys.argv[1], map(int, sys.argv[2:6]), np.dtype(sys.argv[6])
    import torch

    warnings.simplefilter("ignore")
    with open(file, "rb") as stream, torch.inference_mode():  # noqa: PTH123 - it imports nothing more than it needs
        program = torch.export.load(stream).module()
        while header := sys.stdin.buffer.read(8):
            (count,) = struct.unpack("<q", header)
            content = sys.stdin.buffer.read(count * channels * height * width * depth.itemsize)
            pixels = np.frombuffer(bytearray(content), depth).reshape(count, channels, height, width)
            began = time.perf_counter()
            probabilities = program(torch.from_numpy(pixels)).numpy()
            seconds = time.perf_counter() - began
            assert probabilities.shape == (count, classes), probabilities.shape
            assert probabilities.dtype == np.float32, probabilities.dtype
            sys.stdout.buffer.write(struct.pack("<d", seconds) + probabilities.tobytes())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
