"""Ways to spoil a file: bytes, text, and plain data. All randomness comes from the given generator."""

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


def spoil_bytes(data: bytes, rng: random.Random, tokens: list[bytes] | None = None) -> bytes:
    """A copy with one to eight places changed, cut, doubled, or overwritten with boundary values."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(result) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, 1024))
        match rng.randrange(9 if tokens else 8):
            case 0 if result:
                result[at % len(result)] ^= 1 << rng.randrange(8)
            case 1 if result:
                result[at % len(result)] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
            case 2:
                del result[at : at + length]
            case 3:
                result[at:at] = rng.randbytes(length)
            case 4:
                result[at:at] = result[at : at + length]
            case 5:
                del result[at:]
            case 6:
                size = rng.choice((2, 4, 8))
                value = rng.choice(NUMBERS[:-1]) % 256**size
                result[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))
            case 7 if result:
                other = rng.randrange(len(result))
                result[at : at + length] = result[other : other + length]
            case 8 if tokens:
                result[at:at] = rng.choice(tokens)
    return bytes(result)


def spoil_data(data: Any, rng: random.Random) -> Any:
    """A copy of a nest of dicts and lists with one to four values, keys or items changed."""
    root = {"root": copy.deepcopy(data)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = [holder for holder in _holders(root) if holder]
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match rng.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case 3 if holder is not root:
                del holder[key]
            case 4:
                value = copy.deepcopy(rng.choice(VALUES))
                if isinstance(holder, list):
                    holder.insert(key, value)
                elif holder is not root:
                    holder[rng.choice(("name", "x", "tensor", "dict", "config"))] = value
            case 5:
                other = rng.choice(holders)
                holder[key] = copy.deepcopy(
                    other[rng.choice(list(other) if isinstance(other, dict) else range(len(other)))]
                )
    return root.get("root")


def _holders(data: Any) -> list[Any]:
    found = [data] if isinstance(data, dict | list) else []
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        found += _holders(value)
    return found
