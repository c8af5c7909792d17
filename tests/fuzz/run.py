"""Fuzz softmaxce's readers: `python -m tests.fuzz.run [configs|checkpoints|images ...] --rounds N --seed S`.

A round depends on its seed alone, so `--rounds 1 --seed S` reproduces a finding.
"""

import argparse
import sys

from .watchdog import run

TARGETS = ("configs", "checkpoints", "images")


def main() -> int:
    """Exit status 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS) + "; all if left out")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each further round adds 1")
    arguments = parser.parse_args()
    findings = []
    for target in arguments.targets or TARGETS:
        outcome = run(target, range(arguments.seed, arguments.seed + arguments.rounds))
        print(f"{target}: {outcome}", flush=True)
        findings += outcome.findings
    print(*findings, sep="\n\n", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
