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


def adapt_first_layer(model: nn.Module, channels: int) -> None:
    """Give a model for color images a first convolution for images of `channels`, as timm does.

    The weights of red, green and blue are repeated over the channels and scaled by 3 / C, so that the layer's output is
    of the same size. Raises: ValueError if there is no such convolution.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ValueError(f"the model takes images of 1 or 3 channels, got {channels}: it begins with no convolution")
    weight = first.weight.detach().repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def blocks(model: nn.Module) -> list[Block]:
    """A model's blocks from its input to its last layer, which is the last block.

    A child of the model is a block, unless it is a Sequential, ModuleList or ModuleDict, or a stage, which holds such
    a stack of equal modules: then its children are, likewise. A normalization layer belongs to the block before it;
    single parameters of the model or a stage (a class token, a position embedding) belong to the first.
    Raises: ValueError if the model has no last layer.
    """
    _, head = last_layer(model)
    chain: list[Block] = []
    single: list[nn.Parameter] = []
    seen = {id(parameter) for parameter in head.parameters()}

    def unseen(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        new = [parameter for parameter in parameters if id(parameter) not in seen]
        seen.update(map(id, new))
        return new

    def visit(name: str, module: nn.Module, *, is_whole: bool) -> None:
        children = [(n, child) for n, child in module.named_children() if list(child.parameters())]
        if children and (is_whole or isinstance(module, CHAINS) or _is_stage(module)):
            single.extend(unseen(list(module.parameters(recurse=False))))
            for child_name, child in children:
                visit(f"{name}.{child_name}".removeprefix("."), child, is_whole=is_whole and len(children) == 1)
        elif new := unseen(list(module.parameters())):
            if chain and all(parameter.ndim <= 1 for parameter in new):
                chain[-1].parameters.extend(new)
            else:
                chain.append(Block(name, new))

    visit("", model, is_whole=True)
    last = Block(last_layer(model)[0], list(head.parameters()))
    if chain:
        chain[0].parameters[:0] = single
    elif single:
        chain.append(Block("", single))
    return [*chain, last]


def _is_stage(module: nn.Module) -> bool:
    """Whether a module holds a stack of modules of one class, each with layers of its own."""
    stacks = [list(child.children()) for child in module.children() if isinstance(child, CHAINS)]
    return any(
        len({type(block) for block in stack}) == 1 and not isinstance(stack[0], CHAINS) and any(stack[0].children())
        for stack in stacks
    )
