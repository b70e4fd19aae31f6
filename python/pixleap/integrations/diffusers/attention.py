"""`pixleap.ops.attention` inside the attention processors of diffusers."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ... import masks
from .. import _attention

MaskOf = Callable[[int], Any]

# Where HiDiffusion puts its windows: layers at the first resolution that has attention.
HIDIFFUSION_LAYERS = {
    "sd15": ("down_blocks.0.", "up_blocks.3."),
    "sdxl": ("down_blocks.1.", "up_blocks.1."),
}


def _native(mask_of: MaskOf | None, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention by the op where it covers the call, else by torch."""
    mask = mask_of(query.shape[-2]) if mask_of else None
    out = _attention.scaled_dot_product_attention(query, *args, **(kwargs | {"mask": mask}))
    if out is not None:
        return out
    if mask is not None:
        raise ValueError(
            "attention_processor: argument 'mask' expected inference on tensors that "
            "pixleap.ops.attention takes, without another mask, got a call with shape "
            f"{tuple(query.shape)}, {query.dtype}, {query.device}"
        )
    return functional.scaled_dot_product_attention(query, *args, **kwargs)


class _Functional:
    """torch.nn.functional with native attention."""

    def __init__(self, mask: MaskOf | None) -> None:
        self.scaled_dot_product_attention = functools.partial(_native, mask)

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)


class _Mode(TorchFunctionMode):
    """While entered, this thread's calls of torch's attention are `_native`. It costs every torch
    call some microseconds, so it is entered around diffusers' choice of a backend only."""

    def __init__(self, mask: MaskOf | None) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            func = functools.partial(_native, self.mask)
        return func(*args, **(kwargs or {}))


class _Globals(dict[str, Any]):
    """The globals of a function, except for the names that are held here."""

    def __init__(self, of: dict[str, Any], **names: Any) -> None:
        inside = {k: of[k] for k in ("__name__", "__package__", "__spec__") if k in of}  # imports
        super().__init__(inside | names)
        self.of = of

    def __missing__(self, name: str) -> Any:
        return self.of[name]


def _rebound(call: types.FunctionType, mask: MaskOf | None) -> types.FunctionType | None:
    """A processor's `__call__` with native attention: diffusers' own code, in which the names that
    lead to torch's attention mean ours. None where it uses neither of them."""
    names: dict[str, Any] = {}
    used = getattr(call, "__code__", None) and call.__code__.co_names
    if used and "F" in used and "scaled_dot_product_attention" in used:
        names["F"] = _Functional(mask)
    if used and "dispatch_attention_fn" in used:
        choose = call.__globals__["dispatch_attention_fn"]

        def dispatch_attention_fn(*args: Any, **kwargs: Any) -> Any:
            with _Mode(mask):
                return choose(*args, **kwargs)

        names["dispatch_attention_fn"] = dispatch_attention_fn
    if not names:
        return None
    bound = types.FunctionType(
        call.__code__, _Globals(call.__globals__, **names), call.__name__, call.__defaults__,
        call.__closure__,
    )  # fmt: skip
    bound.__kwdefaults__ = call.__kwdefaults__
    return bound


def _with_state(cls: Any, state: dict[str, Any]) -> Any:
    new: Any = object.__new__(cls)
    new.__dict__.update(state)
    return new


def _rebuild(cls: Any, state: dict[str, Any]) -> Any:
    return _with_state(_accelerated(cls), state)


@functools.cache
def _accelerated(cls: Any) -> Any:
    """A subclass of a processor's class, or None where there is nothing to replace. It keeps name
    and signature, which diffusers looks at."""
    original = cls.__call__
    plain = _rebound(original, None)
    if plain is None:
        return None

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = self.__dict__.get("_pixleap_mask")
        encoder = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
        if mask is not None and encoder is None:
            masked: Any = _rebound(original, mask)
            return masked(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        return plain(self, *args, **kwargs)

    # diffusers asks for the signature at every call; said here, it needs no search.
    call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
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
            `F.scaled_dot_product_attention` or diffusers' `dispatch_attention_fn`.
        mask: for self-attention: called with the number of tokens at every call, returns one of
            `pixleap.masks`, an array that broadcasts to (B, H, L, L) and is added to the scores, or
            None. See `window_masks`.

    Returns:
        A processor of a subclass, with the same state. The results are those of `processor` to
        rounding, except that a token which sees no key gets zeros.

    Raises:
        ValueError: a processor without such a call (AttnProcessor, SlicedAttnProcessor, ...).

    A call that the op does not cover goes to torch: gradients, dropout, heads wider than 256,
    float64, tensor subclasses, CUDA tensors in a build without the kernel, and while torch.compile
    traces. With a `mask` such a call raises ValueError.
    """
    processor = AttnProcessor2_0() if processor is None else processor
    plain: Any = getattr(processor, "_pixleap_plain", type(processor))
    cls = _accelerated(plain)
    if cls is None:
        raise ValueError(
            "attention_processor: argument 'processor' expected one that calls torch's or "
            f"diffusers' attention function, got {plain.__name__}"
        )
    return _with_state(cls, {**vars(processor), "_pixleap_mask": mask})


def window_masks(
    height: int | None = None, width: int | None = None, generator: torch.Generator | None = None
) -> MaskOf:
    """HiDiffusion's window attention (MSW-MSA; Zhang et al., ECCV 2024) as a `mask`:

        apply_attention(pipe.unet)
        apply_attention(pipe.unet, layers=HIDIFFUSION_LAYERS["sdxl"], mask=window_masks())

    The tokens of a layer are 2 x 2 windows, each half as high and as wide as the grid, moved by 0,
    1/4, 2/4 or 3/4 of a window. Every call of every layer draws its shift anew, by one
    `torch.rand(1)` as in github.com/megvii-research/HiDiffusion. Attention is then a quarter of the
    work, and nothing is rolled or partitioned.

    Args:
        height, width: of the latent, or of anything with its aspect ratio; None for square grids.
        generator: of the shifts; None for torch's global one.

    Raises:
        ValueError: when called, a grid with an odd side. HiDiffusion interpolates it, at a loss of
            quality that it warns of.
    """

    def mask(tokens: int) -> masks.window:
        if height is None or width is None:
            rows = columns = math.isqrt(tokens)
        else:
            ratio = max(1, round(math.sqrt(height * width / tokens)))
            rows, columns = -(-height // ratio), -(-width // ratio)
        if rows * columns != tokens or rows % 2 or columns % 2:
            raise ValueError(
                f"window_masks: argument 'tokens' expected a grid of even sides, got {tokens}, of "
                f"which {rows} x {columns} was made"
            )
        quarter = max(0, math.ceil(4 * float(torch.rand(1, generator=generator))) - 1)
        size = rows // 2, columns // 2
        shift = size[0] // 4 * quarter, size[1] // 4 * quarter
        return masks.window(rows, columns, size, shift)

    return mask


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
        layers: only those whose name in the model begins with one of these. Layers whose processor
            has no attention function to replace keep it.
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
        plain: Any = getattr(module.processor, "_pixleap_plain", type(module.processor))
        if _accelerated(plain) is None:
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
            state = {k: v for k, v in vars(module.processor).items() if k != "_pixleap_mask"}
            module.set_processor(_with_state(plain, state))  # type: ignore[operator]
    return target
