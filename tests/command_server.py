"""Runs the command `softmaxce` in forks of this process, which has imported what the commands import.

A fork is a process of its own, as the installed script's is, without the seconds that the imports take. Each line of
stdin is a request in JSON; stdout answers with a line that is the exit status.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from typing import Any

from softmaxce_cli.main import COMMANDS, app

import softmaxce

TIMEOUT = 300  # seconds, for a busy machine; then a command is killed
NOT_IMPORTED = ("softmaxce.__main__", "softmaxce.kernels.triton_cross_entropy")
IN_FUNCTIONS = ("torchvision", "sklearn.metrics", "scipy.optimize", "scipy.stats", "matplotlib.figure", "jinja2")


def run(request: dict[str, Any]) -> None:
    """Run a command, and end this process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY), number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["command"]
    app()


del sys.path[0]  # this file's folder; the installed script has its own there
modules = [module.name for module in pkgutil.walk_packages(softmaxce.__path__, "softmaxce.")]
commands = [f"softmaxce_cli.{file}" for file, _, _ in COMMANDS.values()]
for name in (*modules, *commands, *IN_FUNCTIONS):
    if name not in NOT_IMPORTED:
        with contextlib.suppress(ModuleNotFoundError):  # an optional package
            importlib.import_module(name)
gc.collect()
gc.freeze()  # a fork shares the memory of what it does not change
for line in sys.stdin:
    process = multiprocessing.get_context("fork").Process(target=run, args=(json.loads(line),))
    process.start()
    process.join(TIMEOUT)
    process.kill()
    process.join()
    print(process.exitcode, flush=True)
