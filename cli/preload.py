"""What a training process imports, for the server that forks the processes of `--jobs`."""

import contextlib

from .startup import fast_imports, import_without_settings

import_without_settings()
with fast_imports():
    import softmaxce.build
    import softmaxce.report.training
    import softmaxce.session

    with contextlib.suppress(ImportError):  # no Numba for this Python or this processor
        import softmaxce.losses.cpu  # noqa: F401
