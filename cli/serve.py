"""`softmaxce serve`: a trained model that answers HTTP requests, with a page to try it."""

from typing import Annotated

import typer

from softmaxce import streams

from .options import Device, RunOrExportedModel, Temperature, TrustCode, run_or_newest
from .startup import fast_imports

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    run: RunOrExportedModel = None,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="The address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 takes one that is free.")
    ] = 8000,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once, at most; default: the run's data.eval_batch_size.")
    ] = None,
    device: Device = None,
    temperature: Temperature = None,
    trust_code: TrustCode = False,
    max_body: Annotated[float, typer.Option(min=0.001, metavar="MB", help="Refuse larger requests (413).")] = 20,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, metavar="M", help="Refuse images of more million pixels (400).")
    ] = 25,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Refuse requests that take more seconds to arrive (408).")
    ] = 10,
    max_requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Answer so many at once, and refuse more (503).")
    ] = 32,
) -> None:
    """Answer HTTP requests with a trained model, and show a page to draw or drop an image.

    POST /predict takes an image as its body, or several as a multipart form, and answers as predict --json does. GET /
    is the page, with the steps of the loss and their sliders; /health and /metrics are for other programs. Requests
    that wait are batched. There is no TLS and no user: it is for this machine, or behind a proxy. It ends at ctrl-C or
    SIGTERM, after the requests that have begun.
    """
    from softmaxce.inference.onnx_session import require_packages
    from softmaxce.inference.opening import classes_and_images

    require_packages(PACKAGES, "serve", "serve")
    run = run_or_newest(run, "serve")
    classes_and_images(run)  # a folder without a run is refused before torch is imported
    with fast_imports():
        from softmaxce.serve import server
        from softmaxce.serve.classifier import open_classifier
        from softmaxce.serve.limits import Limits

    limits = Limits(int(max_body * 1e6), int(max_pixels * 1e6), timeout, max_requests)
    with (
        server.listen(host, port) as opened,
        open_classifier(
            run, device=device, batch_size=batch_size, temperature=temperature, trust_code=trust_code
        ) as classifier,
    ):
        where = "" if server.is_local(opened) else ", open to other machines, without TLS and users"
        streams.line(f"{classifier.name}: {server.url(opened)} (ctrl-C ends it{where})", err=True)
        server.run(classifier, opened, limits, host)
