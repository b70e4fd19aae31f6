"""Finding a transformer's lists of blocks, and what of a block's arguments comes back out of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

# Lists that models run one after the other, in the order in which they are registered.
LIST_NAMES = (
    "transformer_blocks",
    "joint_transformer_blocks",
    "single_transformer_blocks",
    "double_stream_blocks",
    "single_stream_blocks",
    "blocks",
    "layers",
)
STREAMS = ("hidden_states", "encoder_hidden_states")


def find_lists(module: Module, blocks: str | Sequence[str] | None) -> dict[str, list[Module]]:
    """The lists of blocks of a module by name, in the order of their execution.

    Raises:
        ValueError: no such lists (with what was found), or lists that may run in between.
    """
    if blocks is None:
        children = {n: m for n, m in module.named_children() if isinstance(m, ModuleList)}
        names = [n for n in children if n in LIST_NAMES]
        others = [n for n, m in children.items() if "block" in n and n not in LIST_NAMES and len(m)]
        if names and others:
            raise ValueError(
                f"apply_cache: argument 'blocks' expected the lists to cache in the order in which "
                f"they run, as {type(module).__name__} also has {others} beside {names}, got None"
            )
    else:
        names = [blocks] if isinstance(blocks, str) else list(blocks)
    lists = {}
    for name in names:
        try:
            found = module.get_submodule(name)
        except AttributeError:
            found = None
        if not isinstance(found, ModuleList):
            raise _no_blocks(module, f"the name of a ModuleList, got {name!r}")
        if len(found):
            lists[name] = list(found)
    if not lists:
        raise _no_blocks(module, f"lists of blocks, got {blocks!r}")
    every = [block for found in lists.values() for block in found]
    if len({id(block) for block in every}) < len(every):
        raise ValueError(
            f"apply_cache: argument 'blocks' expected each block once, got a block that occurs "
            f"twice in {list(lists)}"
        )
    return lists


def _no_blocks(module: Module, message: str) -> ValueError:
    found = [f"{n} ({len(m)})" for n, m in module.named_modules() if isinstance(m, ModuleList)]
    return ValueError(
        f"apply_cache: argument 'blocks' expected {message}; {type(module).__name__} has "
        f"{', '.join(found) if found else 'no ModuleList'}"
    )


def arguments_of(forward: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """A function from the arguments of a call to its tensor arguments by name, in their order."""
    try:
        names = [
            p.name
            for p in inspect.signature(forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):  # a callable without a signature
        names = []

    def named(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        extra = [f"argument {i}" for i in range(len(names), len(args))]
        values = {**dict(zip([*names, *extra], args, strict=False)), **kwargs}
        return {name: x for name, x in values.items() if isinstance(x, Tensor)}

    return named


@dataclass(frozen=True)
class Layout:
    """What a block returns: per element the name of the argument that it continues, None for an
    element that is None. `kind` is tuple or list, None for a bare tensor."""

    names: tuple[str | None, ...]
    kind: type | None

    def build(self, value_of: Callable[[str], Tensor]) -> Any:
        values = [None if name is None else value_of(name) for name in self.names]
        return values[0] if self.kind is None else self.kind(values)

    def streams(self) -> list[str]:
        return [name for name in self.names if name is not None]


def elements(block: Module, output: Any) -> tuple[list[Tensor | None], type | None]:
    """What a block returned, as a list of tensors."""
    kind = type(output) if type(output) in (tuple, list) else None
    values = list(output) if kind else [output]
    if not any(isinstance(x, Tensor) for x in values) or not all(
        x is None or isinstance(x, Tensor) for x in values
    ):
        got = ", ".join(type(x).__name__ for x in values)
        raise TypeError(
            f"apply_cache: expected {type(block).__name__} to return a tensor or a tuple of "
            f"tensors and None, got {got}"
        )
    return values, kind


def layout_of(
    block: Module, arguments: dict[str, Tensor], output: Any, streams: Sequence[str] | None
) -> Layout:
    """Matches what a block returned with its arguments.

    A single tensor continues `hidden_states`, else the first tensor argument. For two, `streams`
    decides, else what diffusers knows about the class, else the shapes.
    """
    values, kind = elements(block, output)
    name = type(block).__name__
    present = [i for i, x in enumerate(values) if x is not None]
    if streams is not None and len(streams) == len(values):
        names: list[str | None] = [streams[i] if i in present else None for i in range(len(values))]
    elif len(present) == 1:
        own = streams[0] if streams is not None and len(streams) == 1 else None
        only = own or (
            "hidden_states" if "hidden_states" in arguments else next(iter(arguments), "")
        )
        names = [only if i in present else None for i in range(len(values))]
    else:
        names = list(_two_streams(block, arguments, values, streams))
    for i in present:
        x, argument = values[i], arguments.get(names[i] or "")
        if x is None or argument is None or argument.shape != x.shape:
            raise ValueError(
                f"apply_cache: expected {name} to return element {i} in the shape of its argument "
                f"{names[i]!r}, got {None if x is None else tuple(x.shape)} for "
                f"{None if argument is None else tuple(argument.shape)}; name what it returns by "
                f"streams=(...), or use Forecast(target='output')"
            )
    return Layout(tuple(names), kind)


def _two_streams(
    block: Module,
    arguments: dict[str, Tensor],
    values: list[Tensor | None],
    streams: Sequence[str] | None,
) -> tuple[str, str]:
    hidden, encoder = (arguments.get(name) for name in STREAMS)
    help = "; name them in the order of return by streams=(...), or use Forecast(target='output')"
    if len(values) != 2 or streams is not None or hidden is None or encoder is None:
        raise ValueError(
            f"apply_cache: expected {type(block).__name__} to return {STREAMS} or "
            f"{'what streams names' if streams is None else tuple(streams)}, got {len(values)} "
            f"elements for the tensor arguments {list(arguments)}{help}"
        )
    first = _registered_index(block)
    if first is None:
        shapes = [None if x is None else x.shape for x in values]
        if hidden.shape == encoder.shape or sorted(map(str, shapes)) != sorted(
            map(str, (hidden.shape, encoder.shape))
        ):
            raise ValueError(
                f"apply_cache: expected shapes that tell which of the two results of "
                f"{type(block).__name__} are the hidden states, got {shapes} for arguments "
                f"{hidden.shape} and {encoder.shape}{help}"
            )
        first = shapes.index(hidden.shape)
    return STREAMS if first == 0 else (STREAMS[1], STREAMS[0])


def _registered_index(block: Module) -> int | None:
    """Where diffusers' own caches find the hidden states in what a block of its classes returns."""
    if not type(block).__module__.startswith("diffusers."):
        return None
    try:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        metadata = TransformerBlockRegistry.get(type(block))
    except (ImportError, ValueError):  # another version; a class that it does not know
        return None
    if metadata.hidden_states_argument_name != "hidden_states":
        return None
    return metadata.return_hidden_states_index


def unit_stride(x: Tensor) -> Tensor:
    """x, or a copy where its last axis has gaps (as patch embeddings leave it)."""
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def relative_change(difference: Tensor, reference: Tensor, norm: str) -> float:
    """|difference| / |reference|; NaN for 0 / 0."""
    if norm == "l1":
        dtype = torch.promote_types(difference.dtype, torch.float32)
        size, scale = (torch.linalg.vector_norm(x, 1, dtype=dtype) for x in (difference, reference))
        return float(size / scale)
    from ..ops import moments

    sums = moments(difference, reference).sum(dim=0)
    return float((sums[2] / sums[3]).sqrt())
