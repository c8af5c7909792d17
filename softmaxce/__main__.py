"""`python -m softmaxce`: the command `softmaxce`, without the current folder in front of the module search path."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib may lie there too
        del sys.path[0]  # the current folder, which -m puts there: a json.py in it would be run
    from softmaxce_cli.main import app  # type: ignore[import-not-found, unused-ignore]  # in a checkout it is cli/

    app()
