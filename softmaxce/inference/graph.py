"""A trained model as one graph, from bytes to probabilities, in the formats that torch's exporter writes."""

import copy
import json
import warnings
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import FULL_SCALE
from ..errors import FAILED, SoftmaxceError, in_one_line, ran_out_of_memory
from .export_metadata import BLANK, CHECKSUM, INPUT, OUTPUT, ExportMetadata, with_checksum

EXAMPLES = 3  # images in the traced batch; for one image, the exporter may take the batch's size as a constant
BATCH = "N"  # the name of the batch's dimension
MAX_ONNX = 2 << 30  # bytes of a protocol buffer


class ExportError(SoftmaxceError):
    """A model could not be exported, or its exported file gives other probabilities."""

    status = FAILED


class ProbabilityGraph(nn.Module):
    """Stored images -> probabilities: normalization, test-time augmentation, temperature and softmax in one module.

    Args:
        model: images [N, C, H, W] float, normalized -> logits [N, K]; with test-time augmentation.
        mean: C numbers, of pixels in [0, 1].
        std: C numbers, likewise.
        temperature: what the logits are divided by.
        full_scale: the value of a pixel that is 1 in the normalization.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        temperature: float,
        full_scale: int = 255,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.mean_of_bytes: Tensor
        self.scale_of_bytes: Tensor
        self.register_buffer("mean_of_bytes", torch.tensor(mean).view(1, -1, 1, 1) * full_scale)
        self.register_buffer("scale_of_bytes", 1 / (torch.tensor(std).view(1, -1, 1, 1) * full_scale))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> [N, K] float32."""
        normalized = (images.float() - self.mean_of_bytes) * self.scale_of_bytes  # as Batches.prepared
        return torch.softmax(self.model(normalized).float() / self.temperature, 1)


def trace(model: nn.Module, metadata: ExportMetadata) -> torch.export.ExportedProgram:
    """A model's graph, for any number of images.

    Args:
        model: images [N, C, H, W] float, normalized -> logits [N, K]; in evaluation mode, on the CPU.
        metadata: the shape, the normalization and the temperature.
    Raises: ExportError if torch.export cannot trace it.
    """
    # Contiguous: torch.export.save warns about weights whose memory is laid out otherwise.
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    depth = metadata.resizing.depth
    scale = FULL_SCALE[depth]
    graph = ProbabilityGraph(contiguous, metadata.mean, metadata.std, metadata.temperature, scale).eval()
    images = torch.zeros(EXAMPLES, *metadata.shape, dtype=getattr(torch, depth))
    shapes = {INPUT: {0: torch.export.Dim(BATCH)}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the user's model may raise anything, and torch.export does in many ways
        if ran_out_of_memory(error):
            raise
        raise ExportError(f"torch.export cannot trace this model: {in_one_line(error)}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names of files on this machine
    return program


def onnx_bytes(program: torch.export.ExportedProgram, metadata: ExportMetadata) -> bytes:
    """A traced graph as an ONNX file, by torch's dynamo exporter. Raises: ExportError."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= MAX_ONNX:
        raise ExportError(f"its weights take {size:,} bytes, and an ONNX file holds 2 GiB; use --format torch_export")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
        assert exported is not None
        model: Any = exported.model_proto
    except Exception as error:  # torch's exporter raises in many ways, for an operator that ONNX lacks for example
        if ran_out_of_memory(error):
            raise
        raise ExportError(f"torch.onnx.export cannot express this model: {in_one_line(error)}") from error
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:], model.graph.value_info[:]
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_param = BATCH
        del end.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    return file_bytes(model, metadata)


def file_bytes(model: Any, metadata: ExportMetadata) -> bytes:
    """An onnx.ModelProto with the metadata and a checksum, as a file's content."""
    import onnx

    properties = {**metadata.to_properties(), CHECKSUM: json.dumps(BLANK)}
    onnx.helper.set_model_props(model, properties)
    return with_checksum(model.SerializeToString(deterministic=True))


def program_bytes(program: torch.export.ExportedProgram, metadata: str) -> bytes:
    """A traced graph as a torch.export file, with the metadata as metadata.json. Nothing in it is pickled."""
    program.example_inputs = None  # they alone would be
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, extra_files={"metadata.json": metadata})
    return buffer.getvalue()
