"""The command line: one file a command; it parses, calls and prints, and computes nothing.

Its first act is to shut out the current folder, which may be someone else's and hold a json.py. Nothing in it is run
that no argument names: it is not on the module search path, here and in child processes, and the settings that
libraries look for in it are not read (startup.py).
"""

import os
import sys


def shut_out_current_folder() -> None:
    """Take the current folder off the module search path of this process and of its children.

    An empty entry of $PYTHONPATH, as `PYTHONPATH=$PYTHONPATH:/lib` makes one, stands for it, and so does `.`; an
    absolute path that the user has written there stays. Worker processes start as `python -c`, which puts it first.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [entry for entry in entries if entry and os.path.normpath(entry) != "."]
    if os.environ.get("PYTHONPATH") and len(named) < len(entries):
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        here = os.getcwd()  # noqa: PTH109 - pathlib is not imported yet, and may lie there
        if here not in named and here in sys.path:
            sys.path.remove(here)


shut_out_current_folder()
