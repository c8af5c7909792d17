"""Mutations that corrupt a file: of bytes, text, and plain data. All randomness comes from the generator passed in."""

import copy
import random
from typing import Any

NUMBERS = [0, 1, -1, 2, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 10**299]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        "x",
        "cpu",
        "auto",
        [],
        {},
        [[]],
        [None],
        {"name": "x"},
        "os:system",
        "trap:touch",
        "trap.py:touch",
    ),
    *(
        0.5,
        -0.5,
        1e-300,
        1e300,
        float("inf"),
        float("-inf"),
        float("nan"),
        "../../x",
        "/dev/zero",
        "\ud800",
        "a" * 300,
        "<script>",
    ),
    *(
        "torchvision:resnet18",
        ":",
        "a:",
        ":b",
        "\x1b[2J",
        {"dict": []},
        {"tensor": "x"},
        {"dict": [[0, 1]]},
        "é",
        *NUMBERS,
    ),
]
TOKENS = [
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"[",
        b"]",
        b"{",
        b"}",
        b"- ",
        b": ",
        b"? ",
        b"!!int ",
        b"!!python/object:os.system ",
        b"|\n",
        b">\n",
    ),
    *(
        b"'",
        b'"',
        b"#",
        b"\t",
        b"\n",
        b"\r",
        b"---\n",
        b"...\n",
        b"%YAML 1.2\n",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\\UFFFFFFFF",
    ),
    *(
        b".nan",
        b".inf",
        b"1e999",
        b"0x",
        b"os:system",
        b"trap:touch",
        b"9" * 400,
        b"[" * 60,
        b"&b [*b]",
        b"@",
        b"`",
        b"\xc2\x85",
    ),
]


def corrupt_bytes(data: bytes, rng: random.Random, tokens: list[bytes] | None = None) -> bytes:
    """A copy with one to eight edits: bytes changed, removed, repeated, or overwritten with boundary values."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(result) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, 1024))
        match rng.randrange(9 if tokens else 8):
            case 0 if result:
                result[start % len(result)] ^= 1 << rng.randrange(8)
            case 1 if result:
                result[start % len(result)] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
            case 2:
                del result[start : start + length]
            case 3:
                result[start:start] = rng.randbytes(length)
            case 4:
                result[start:start] = result[start : start + length]
            case 5:
                del result[start:]
            case 6:
                size = rng.choice((2, 4, 8))
                value = rng.choice(NUMBERS[:-1]) % 256**size
                result[start : start + size] = value.to_bytes(size, rng.choice(("big", "little")))
            case 7 if result:
                other = rng.randrange(len(result))
                result[start : start + length] = result[other : other + length]
            case 8 if tokens:
                result[start:start] = rng.choice(tokens)
    return bytes(result)


def corrupt_data(data: Any, rng: random.Random) -> Any:
    """A copy of nested dicts and lists with one to four values, keys or items changed."""
    root = {"root": copy.deepcopy(data)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        containers = [container for container in _containers(root) if container]
        container = rng.choice(containers)
        key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
        match rng.randrange(6):
            case 0 | 1 | 2:
                container[key] = copy.deepcopy(rng.choice(VALUES))
            case 3 if container is not root:
                del container[key]
            case 4:
                value = copy.deepcopy(rng.choice(VALUES))
                if isinstance(container, list):
                    container.insert(key, value)
                elif container is not root:
                    container[rng.choice(("name", "x", "tensor", "dict", "config"))] = value
            case 5:
                other = rng.choice(containers)
                container[key] = copy.deepcopy(
                    other[rng.choice(list(other) if isinstance(other, dict) else range(len(other)))]
                )
    return root.get("root")


def _containers(data: Any) -> list[Any]:
    result = [data] if isinstance(data, dict | list) else []
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        result += _containers(value)
    return result
