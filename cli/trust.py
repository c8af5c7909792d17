"""The option by which the user vouches for code that a run names."""

from typing import Annotated

import typer

TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the module:Name code that the run's config names; else it is refused.")
]
