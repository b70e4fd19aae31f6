"""Next-scale autoregressive decoding (VAR, arXiv:2404.02905) on native ops.

The same model, guidance and filters as the official loop, with the work arranged otherwise: class
modulation is computed once per image instead of once per scale, weights are packed once, keys and
values are appended in place, GELU, gates and residuals ride in the linear ops, and tokens are
drawn without sorting the vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .editing import draw_masks
from .loop import Batch, Progress, reuse
from .packed import PackedVAR
from .pyramid import Codebook, Pyramid
from .sampling import Sampling

if TYPE_CHECKING:
    from ...models.var import VAR


class NextScaleDecoder:
    """A VAR model packed for native decoding; build once, call often. Of the model it keeps the
    tokeniser and the embeddings: its matrices may be freed.

    Args:
        model: a `pixleap.models.VAR` (official or embedded weights). Decoding runs on its device;
            on a CUDA device each scale is a captured CUDA graph (`decode.graphs`) from the second
            batch of a size on, whose memory is kept for the next one.
        weights: "float32"; "bfloat16" or "int8" for half or a quarter of the weight traffic at
            their precision (`PackedVAR`).

    Attributes:
        packed: the transformer, with the primitive that all drivers share (`PackedVAR.run`).
        codebook: the tokeniser's codes and convolutions.
    """

    def __init__(self, model: VAR, weights: str = "float32") -> None:
        self.packed = PackedVAR(model, weights)
        self.codebook = Codebook(model.vae)
        self._batches: dict[Hashable, Batch] = {}

    def batch(self, labels: Tensor, guided: bool, scales: int | None = None) -> Batch:
        """Begins a batch; labels (B,), scales: how many the caches must hold (default: all)."""
        key = tuple(labels.shape), guided, scales
        return reuse(
            self._batches, key, labels,
            lambda: Batch(self.packed, self.codebook, labels, guided, scales),
        )  # fmt: skip

    def check_pair(self, where: str, names: tuple[str, str], other: NextScaleDecoder) -> None:
        """Two models can work on one image if tokeniser and classes are the same.

        Raises:
            ValueError: they are not.
        """
        self.codebook.check_same(where, names, other.codebook)
        mine, theirs = self.packed.num_classes, other.packed.num_classes
        if mine != theirs:
            raise ValueError(
                f"{where}: argument '{names[1]}' expected {mine} classes as '{names[0]}' has, got "
                f"{theirs}"
            )

    @torch.no_grad()
    def tokens(
        self, labels: Tensor, *, progress: Progress | None = None, **options: Any
    ) -> tuple[list[Tensor], Tensor]:
        """Draws all scales.

        labels: (B,) int64; negative or num_classes means no label. Options are those of `Sampling`:
        cfg=1.5, temperature=1, top_k=0, top_p=1, seed=0, first_sample=0, noise_dtype="float32",
        more_smooth=False. Draws of sample b at scale k depend on (seed, k, first_sample + b) only,
        not on the batch. top_p 1 and top_k 0 filter nothing. progress is called after each scale
        with its index and the features so far.

        Returns:
            Tokens (B, n_k) int64 of every scale, and the features (B, Cv, h, w) for the decoder.

        Raises:
            ValueError: labels or options that do not fit.
        """
        sampling = Sampling(**options).check(self.packed.vocabulary)
        batch = self.batch(labels, sampling.guided)
        batch.draw(sampling, len(self.packed.patch_nums), progress)
        return batch.pyramid.result()

    @torch.no_grad()
    def edit(
        self,
        tokens: Sequence[Tensor],
        mask: Tensor,
        labels: Tensor,
        *,
        coverage: float = 0.5,
        keep_scales: int = 0,
        progress: Progress | None = None,
        **options: Any,
    ) -> tuple[list[Tensor], Tensor]:
        """In-painting, out-painting and class-conditional editing (VAR, section 5.3).

        Args:
            tokens: of the image, (B, n_k) int64 per scale, as `vae.img_to_idxBl` gives them.
            mask: (B, h, w) or (h, w) bool, True where the image is drawn anew; h and w are the
                finest grid's side or a multiple of it, as the image's are.
            labels: (B,) as in `tokens`; negative ones for painting without a class.
            coverage: in (0, 1]; a token is drawn if the mask covers at least this share of its
                cell, and kept otherwise.
            keep_scales: coarsest scales to keep whatever the mask says. The official code keeps
                the 1x1 scale.
            progress, options: as in `tokens`.

        Returns:
            As `tokens`. Tokens outside the mask are the given ones at every scale. Scales before
            the first drawn token take one pass together.

        Raises:
            ValueError: tokens, masks, labels or options that do not fit.
        """
        self.codebook.check_tokens("edit", tokens)
        batch, sides = len(tokens[0]), self.packed.patch_nums
        masks = draw_masks(mask, batch, sides, coverage, keep_scales)
        if labels.shape != (batch,):
            raise ValueError(
                f"edit: argument 'labels' expected shape ({batch},) as the tokens have, got "
                f"{tuple(labels.shape)}"
            )
        sampling = Sampling(**options).check(self.packed.vocabulary)
        drawn = torch.stack([m.any() for m in masks]).tolist()
        last = max((scale for scale, some in enumerate(drawn) if some), default=-1)
        edited = self.batch(labels, sampling.guided, last + 1)
        device = self.packed.device
        for scale, some in enumerate(drawn):
            given = tokens[scale].to(device), masks[scale].to(device) if some else None
            edited.draw(sampling, scale + 1, progress, given)
        return edited.pyramid.result()

    @torch.no_grad()
    def log_probabilities(
        self, tokens: Sequence[Tensor], labels: Tensor, **options: Any
    ) -> list[Tensor]:
        """Log-probabilities of given tokens under the model, by one block-causal pass.

        tokens: (B, n_k) int64 per scale. labels: (B,). Options: cfg=0, which is the bare model and
        costs one half; temperature, top_k and top_p give the law that `tokens` draws from.

        Returns:
            (B, n_k) float32 per scale; -inf for a token that a filter drops.

        Raises:
            ValueError: tokens, labels or options that do not fit.
        """
        self.codebook.check_tokens("log_probabilities", tokens)
        sampling = Sampling(**{"cfg": 0.0, **options}).check(self.packed.vocabulary)
        if labels.shape != tokens[0].shape[:1]:
            raise ValueError(
                f"log_probabilities: argument 'labels' expected shape ({len(tokens[0])},) as the "
                f"tokens have, got {tuple(labels.shape)}"
            )
        scales = len(tokens)
        passes = self.packed.start(labels, guided=sampling.guided)
        pyramid = Pyramid(self.codebook, passes.batch)
        tokens = [t.to(self.packed.device) for t in tokens]
        for t in tokens[:-1]:
            pyramid.add(t)
        logits = self.packed.run(passes, pyramid.maps, scales, same_bits=False)
        return [sampling.probabilities(logits[k], k, scales, tokens[k]) for k in range(scales)]

    def likelihood(self, tokens: Sequence[Tensor], labels: Tensor, **options: Any) -> Tensor:
        """(B,) float64: natural logarithm of the probability of all tokens of an image; see
        `log_probabilities`."""
        parts = self.log_probabilities(tokens, labels, **options)
        return torch.stack([p.double().sum(1) for p in parts]).sum(0)

    @torch.no_grad()
    def images(self, f_hat: Tensor) -> Tensor:
        """Features (B, Cv, h, w) -> images (B, channels, height, width) in [0, 1]."""
        return self.codebook.vae.fhat_to_img(f_hat).add_(1).mul_(0.5)

    def __call__(self, labels: Tensor, **options: Any) -> Tensor:
        """Images (B, channels, height, width) in [0, 1]; options as in `tokens`."""
        return self.images(self.tokens(labels, **options)[1])


def as_decoder(model: VAR | NextScaleDecoder, weights: str = "float32") -> NextScaleDecoder:
    """Packs a model; a decoder stays as it is."""
    return model if isinstance(model, NextScaleDecoder) else NextScaleDecoder(model, weights)


def next_scale(model: VAR, labels: Tensor, **options: Any) -> Tensor:
    """Sample images from a VAR model with native ops; see `NextScaleDecoder`.

    Packs the weights at every call: build a `NextScaleDecoder` to sample more than once.
    """
    return NextScaleDecoder(model)(labels, **options)
