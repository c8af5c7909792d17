"""One part of `bench gpu`, as a process: python -m softmaxce.bench.gpu_part NAME ARGUMENTS (JSON).

Its results are JSON lines on stdout; whatever else prints there gets to stderr.
"""

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from .gpu import Report

GPU_MARK = "pytest.mark.gpu"  # of the tests that need a GPU


def tests(report: Report, root: str) -> None:
    """The tests marked `gpu` of a checkout. A row per test: `test`, and `outcome`: passed, failed or skipped.

    Args:
        report: where the results go.
        root: the folder of the checkout.
    """
    files = [file for file in sorted(Path(root, "tests").rglob("test_*.py")) if GPU_MARK in file.read_text("utf-8")]
    if not files:
        report.left_out(f"the tests are left out: {root} is not a checkout of softmaxce")
        return
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        report.left_out(f"the tests are left out: {' and '.join(missing)} is not installed; pip install -e '.[test]'")
        return
    import pytest

    class Outcomes:
        """A plugin of pytest that reports each test once."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                outcome = report.outcome if report.when != "teardown" else "failed"
                results.row(test=report.nodeid, outcome=outcome)

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                results.row(test=report.nodeid, outcome="failed")

    results = report
    os.chdir(root)
    options = ["-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", root]
    status = int(pytest.main([*options, *map(str, files)], plugins=[Outcomes()]))
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        report.failed(f"pytest ended with {pytest.ExitCode(status).name}")
    elif status:
        report.failed("tests failed")


def loss(report: Report, **arguments: Any) -> None:
    """See gpu_loss.compare."""
    from .gpu_loss import compare

    compare(report, **arguments)


def training(report: Report, **arguments: Any) -> None:
    """See gpu_training.throughput_of."""
    from .gpu_training import throughput_of

    throughput_of(report, **arguments)


def cifar10(report: Report, **arguments: Any) -> None:
    """See gpu_training.time_to_accuracy."""
    from .gpu_training import time_to_accuracy

    time_to_accuracy(report, **arguments)


def processes(report: Report, **arguments: Any) -> None:
    """See gpu_processes.compare."""
    from .gpu_processes import compare

    compare(report, **arguments)


PARTS = {part.__name__: part for part in (tests, loss, training, cifar10, processes)}


def main() -> None:
    """Run the part that the command line names."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    report = Report(results)
    logging.getLogger("softmaxce").addHandler(report)
    with report.errors_of(sys.argv[1]):
        PARTS[sys.argv[1]](report, **json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
