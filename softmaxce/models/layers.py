"""The parts of a model that fine-tuning treats differently: its last layer, and the blocks before it in order."""

from dataclasses import dataclass

from torch import nn

CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """Consecutive layers of a model, such as one residual block.

    Attributes:
        name: of the module; of the first one, where norms or single parameters joined it.
        parameters: its parameters, each in one block only.
    """

    name: str
    parameters: list[nn.Parameter]


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The last layer that makes logits (a Linear, or squeezenet's 1x1 convolution), and its name.

    Raises: ValueError if there is none.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and "aux" not in n.lower()]
    layers = layers or [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
    if not layers:
        raise ValueError("the model has no last layer that is an nn.Linear or nn.Conv2d")
    return layers[-1]


def blocks(model: nn.Module) -> list[Block]:
    """A model's blocks from its input to its last layer, which is the last block.

    A child of a Sequential, ModuleList or ModuleDict is a block; so is a child of the model itself or of a module with
    most of its parameters, unless it is one of these. A normalization layer belongs to the block before it; single
    parameters of the model (a class token, a position embedding) belong to the first.
    Raises: ValueError if the model has no last layer.
    """
    _, head = last_layer(model)
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    found: list[Block] = []
    single: list[nn.Parameter] = []
    seen = {id(parameter) for parameter in head.parameters()}

    def unseen(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        new = [parameter for parameter in parameters if id(parameter) not in seen]
        seen.update(map(id, new))
        return new

    def visit(name: str, module: nn.Module) -> None:
        parameters = list(module.parameters())
        is_large = sum(parameter.numel() for parameter in parameters) > half
        if list(module.children()) and (isinstance(module, CHAINS) or is_large or module is model):
            single.extend(unseen(list(module.parameters(recurse=False))))
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}".removeprefix("."), child)
        elif new := unseen(parameters):
            if found and all(parameter.ndim <= 1 for parameter in new):
                found[-1].parameters.extend(new)
            else:
                found.append(Block(name, new))

    visit("", model)
    last = Block(last_layer(model)[0], list(head.parameters()))
    if found:
        found[0].parameters[:0] = single
    elif single:
        found.append(Block("", single))
    return [*found, last]
