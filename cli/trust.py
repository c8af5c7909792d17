"""The option that allows the user's own code named by a run's config."""

from typing import Annotated

import typer

TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the module:Name code that the run's config names; else it is refused.")
]
