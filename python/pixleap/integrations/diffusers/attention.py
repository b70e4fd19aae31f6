"""`pixleap.ops.attention` inside the attention processors of diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.overrides import TorchFunctionMode

from .._attention import scaled_dot_product_attention

MaskOf = Callable[[int], Any]


class _Substitute(TorchFunctionMode):
    """While it is entered, this thread's calls of torch's attention are native where they can be.
    Processors are diffusers' own code around that call, so that their norms, projections, masks
    and reshapes need no second copy here."""

    def __init__(self, mask: MaskOf | None = None) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        mask = self.mask(query.shape[-2]) if self.mask else None
        out = scaled_dot_product_attention(*args, **kwargs, mask=mask)
        if out is not None:
            return out
        if mask is not None:
            raise ValueError(
                "apply_attention: argument 'mask' expected inference on tensors that "
                "pixleap.ops.attention takes and no other mask, got a call with shapes "
                f"{tuple(query.shape)}, {query.dtype}, {query.device}"
            )
        return func(*args, **kwargs)


_PLAIN = _Substitute()


def _of(cls: type, processor: Any) -> Any:
    """An object of `cls` with the state of `processor`, weights of a module included."""
    new = object.__new__(cls)
    new.__dict__.update(vars(processor))
    return new


def _rebuild(cls: type, state: dict[str, Any]) -> Any:
    new = object.__new__(_accelerated(cls))
    new.__dict__.update(state)
    return new


@functools.cache
def _accelerated(cls: type) -> type:
    """A subclass of a processor's class. It keeps name and signature, which diffusers looks at."""

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = self.__dict__.get("_pixleap_mask")
        encoder = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
        with _PLAIN if mask is None or encoder is not None else _Substitute(mask):
            return cls.__call__(self, *args, **kwargs)

    members = {
        "__call__": call,
        "__reduce__": lambda self: (_rebuild, (cls, dict(vars(self)))),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "_pixleap_plain": cls,
    }
    return type(cls.__name__, (cls,), members)


def attention_processor(processor: Any = None, *, mask: MaskOf | None = None) -> Any:
    """A processor for `set_processor` or `set_attn_processor` whose attention is native.

    Args:
        processor: any of diffusers' processors, which is not changed: AttnProcessor2_0 (the
            default), those of SD3, FLUX, PixArt, CogVideoX, PAG, IP-Adapter, ...: whatever calls
            `torch.nn.functional.scaled_dot_product_attention`. Others work as before.
        mask: for self-attention: called with the number of tokens at every call, returns one of
            `pixleap.masks`, an array that broadcasts to (B, H, L, L) and is added to the scores, or
            None. See `window_masks`.

    Returns:
        A processor of a subclass, with the same state. The results are those of `processor` to
        rounding, except that a token which sees no key gets zeros.

    A call that the op does not cover goes to torch: gradients, dropout, heads wider than 256,
    float64, tensor subclasses, CUDA tensors in a build without the kernel, and while torch.compile
    traces. With a `mask` such a call raises ValueError.
    """
    processor = AttnProcessor2_0() if processor is None else processor
    new = _of(_accelerated(getattr(processor, "_pixleap_plain", type(processor))), processor)
    new.__dict__["_pixleap_mask"] = mask
    return new


def _attentions(target: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules with a processor, by the name that they have in their model."""
    components = getattr(target, "components", None)
    models: Iterable[Any] = components.values() if isinstance(components, dict) else [target]
    for model in models:
        if isinstance(model, nn.Module):
            for name, module in model.named_modules():
                if hasattr(module, "set_processor") and hasattr(module, "processor"):
                    yield name, module


def apply_attention(
    target: Any, *, layers: Iterable[str] | None = None, mask: MaskOf | None = None
) -> Any:
    """Gives the attention layers of a pipeline or model `attention_processor`s.

    Args:
        target: a diffusers pipeline (all of its models) or any torch module.
        layers: only those whose name in the model begins with one of these.
        mask: as in `attention_processor`.

    Returns:
        `target`. `remove_attention` undoes it. Call it again after methods that set processors,
        such as `fuse_qkv_projections` or loading an IP-Adapter.

    Raises:
        ValueError: no layer with a processor (of these names).

    Weights, names of parameters and results stay as they are; see `attention_processor`.
    """
    prefixes = None if layers is None else tuple(layers)
    found = False
    for name, module in _attentions(target):
        if prefixes is not None and not name.startswith(prefixes):
            continue
        found = True
        module.set_processor(attention_processor(module.processor, mask=mask))  # type: ignore[operator]
    if not found:
        raise ValueError(
            "apply_attention: argument 'target' expected attention layers with a processor"
            f"{'' if prefixes is None else f' named {prefixes}'}, got none in "
            f"{type(target).__name__}"
        )
    return target


def remove_attention(target: Any) -> Any:
    """Gives the layers of a pipeline or model diffusers' own processors back, with the state that
    these have now. Returns `target`."""
    for _, module in _attentions(target):
        plain = getattr(module.processor, "_pixleap_plain", None)
        if plain is not None:
            processor = _of(plain, module.processor)
            del processor.__dict__["_pixleap_mask"]
            module.set_processor(processor)  # type: ignore[operator]
    return target
