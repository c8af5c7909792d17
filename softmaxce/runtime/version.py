"""softmaxce's own version: the release's number and a digest of the code that runs."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def softmaxce_version() -> str:
    """`0.2.0.dev0+3f2a9c1b4d5e`: pyproject's version, and the first 12 hex digits of `source_digest` (PEP 440).

    The number alone is the same for all commits between two releases. The digest needs no tags and no git, and it
    distinguishes edited code too.
    """
    return f"{version('softmaxce')}+{source_digest(PACKAGE)[:12]}"


def source_digest(package: Path) -> str:
    """SHA-256 of a package's Python files, their paths included: the same for a clone, an archive and a wheel.

    Left out is configs/, which is in the package only where a wheel was installed.
    """
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    digest = hashlib.sha256()
    for name in sorted(files):
        if not name.startswith("configs/"):
            content = files[name].read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
