"""Speculative next-scale decoding: exact laws on models small enough to enumerate, equality with
plain decoding under shared noise, and the plan of how much to draft."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from next_scale_models import random_var, sibling
from scipy.stats import chisquare

from pixleap.decode import DraftPlan, NextScaleDecoder, SpeculativeDecoder, draft_plan, speculative
from pixleap.decode.draft_plan import fit_cost, pass_seconds
from pixleap.decode.next_scale import Sampling
from pixleap.decode.speculative_run import Run, Verifier
from pixleap.models import VAR, VQVAE, emulate_quantised_weights, load_var, load_var_draft

DRAWS, BATCH = 200_000, 20_000


def tiny(vocabulary: int, seed: int, vae: VQVAE | None = None) -> VAR:
    """Scales 1 and 2: vocabulary ** 5 images."""
    torch.manual_seed(seed)
    if vae is None:
        vae = VQVAE(
            vocab_size=vocabulary, z_channels=4, ch=8, ch_mult=(1,), in_channels=1,
            num_res_blocks=1, norm_groups=4, patch_nums=(1, 2),
        )  # fmt: skip
    model = VAR(vae, num_classes=2, depth=1, embed_dim=8, num_heads=1, patch_nums=(1, 2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if "ada" in name else 0.3))
        vae.quantize.embedding.weight.normal_()
    for m in (vae, model):
        m.eval().requires_grad_(False)
    return model


def near(model: VAR, amount: float) -> VAR:
    """A copy with disturbed weights."""
    copy = VAR(model.vae, **model.config)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return copy.eval().requires_grad_(False)


def exact_law(model: VAR, label: int, cfg: float) -> tuple[np.ndarray, torch.Tensor]:
    """Probability of every image (V ** 5,), by the model's own forward pass in float64."""
    images = torch.tensor(list(itertools.product(range(model.V), repeat=5)))
    inputs = model.vae.quantize.idxBl_to_var_input([images[:, :1], images[:, 1:]])
    logits = [
        model(torch.full((len(images),), given), inputs).double()
        for given in (label, model.num_classes)
    ]
    t = torch.tensor([0.0] + [cfg] * 4)[:, None]
    law = ((1 + t) * logits[0] - t * logits[1]).log_softmax(-1)
    return law.gather(-1, images[..., None])[..., 0].sum(1).exp().numpy(), images


def tally(tokens: list[torch.Tensor], vocabulary: int) -> np.ndarray:
    weights = vocabulary ** torch.arange(4, -1, -1)
    return np.bincount((torch.cat(tokens, 1) * weights).sum(1), minlength=vocabulary**5)


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Chi-square test; images expected fewer than five times are one class."""
    expected = law * counts.sum()
    often = expected >= 5
    a, b = [*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]
    if b[-1] < 1:
        a, b = a[:-1], b[:-1]
    return float(chisquare(a, np.array(b) * sum(a) / sum(b)).pvalue)


@pytest.mark.parametrize("mode", ["token", "joint"])
@pytest.mark.parametrize(("vocabulary", "quality"), [(2, "good"), (2, "random"), (3, "bad")])
def test_law_is_exact(vocabulary: int, quality: str, mode: str) -> None:
    target = tiny(vocabulary, seed=vocabulary)
    draft = {
        "good": lambda: near(target, 0.05),
        "bad": lambda: near(target, 1.0),
        "random": lambda: tiny(vocabulary, 99, target.vae),
    }[quality]()
    law, _ = exact_law(target, 1, 1.5)
    other, _ = exact_law(draft, 1, 1.5)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-9)
    decoder = SpeculativeDecoder(target, draft, mode=mode, drafted=1)
    counts = np.zeros(vocabulary**5)
    accepted = drafted = 0
    labels = torch.ones(BATCH, dtype=torch.int64)
    for first in range(0, DRAWS, BATCH):
        result = decoder.tokens(labels, seed=1, first_sample=first)
        counts += tally(result.tokens, vocabulary)
        accepted, drafted = accepted + result.accepted[0], drafted + result.drafted[0]
    assert p_value(counts, law) > 0.01
    assert drafted == DRAWS and 0 < accepted < drafted
    if quality != "good":  # the test would see the draft's law
        assert p_value(counts, other) < 1e-9


def test_law_of_plain_decoding() -> None:
    vocabulary = 3
    target = tiny(vocabulary, seed=vocabulary)
    decoder = NextScaleDecoder(target)
    counts = np.zeros(vocabulary**5)
    for first in range(0, DRAWS, BATCH):
        labels = torch.zeros(BATCH, dtype=torch.int64)
        counts += tally(decoder.tokens(labels, first_sample=first)[0], vocabulary)
    assert p_value(counts, exact_law(target, 0, 1.5)[0]) > 0.01


@pytest.mark.parametrize("mode", ["token", "joint"])
def test_law_of_samples_that_wait_for_each_other(mode: str) -> None:
    """Three scales, so that samples of a batch get ahead of each other by whole scales."""
    torch.manual_seed(0)
    vae = VQVAE(
        vocab_size=2, z_channels=4, ch=8, ch_mult=(1,), in_channels=1, num_res_blocks=1,
        norm_groups=4, patch_nums=(1, 1, 2),
    )  # fmt: skip
    target = VAR(vae, num_classes=2, depth=1, embed_dim=8, num_heads=1, patch_nums=(1, 1, 2))
    with torch.no_grad():
        for parameter in (*target.parameters(), vae.quantize.embedding.weight):
            parameter.add_(torch.randn_like(parameter) * 0.7)
    for m in (vae, target):
        m.eval().requires_grad_(False)
    draft = near(target, 0.4)
    images = torch.tensor(list(itertools.product(range(2), repeat=6)))
    parts = [images[:, :1], images[:, 1:2], images[:, 2:]]
    expected = torch.stack(
        [
            NextScaleDecoder(target).likelihood(
                [p[i : i + 1].contiguous() for p in parts], torch.tensor([0]), cfg=1.0
            )[0]
            for i in range(64)
        ]
    ).exp()
    decoder = SpeculativeDecoder(target, draft, mode=mode, drafted=2)
    counts = np.zeros(64)
    for first in range(0, DRAWS // 2, BATCH):
        labels = torch.zeros(BATCH, dtype=torch.int64)
        result = decoder.tokens(labels, cfg=1.0, seed=1, first_sample=first)
        weights = 2 ** torch.arange(5, -1, -1)
        counts += np.bincount((torch.cat(result.tokens, 1) * weights).sum(1), minlength=64)
    assert 0 < result.accepted[1] < result.drafted[1] and result.target_passes > 1
    assert p_value(counts, expected.numpy()) > 0.01


def test_samples_ahead_keep_their_tokens() -> None:
    model = random_var()
    target = NextScaleDecoder(model)
    draft = NextScaleDecoder(near(model, 0.03))
    verifier = Verifier("rejection", "token", Sampling(seed=5), 4)
    run = Run(target, draft, torch.tensor([0, 4, 2, 2, 1, 3, 0, 1]), True)
    run.begin(verifier, None)
    kept = []
    while run.pyramid.scales < 4:
        run.advance(min(2, 3 - run.pyramid.scales))
        for scale in range(run.pyramid.scales, 4):
            ahead = run.decided > scale
            if ahead.any():
                kept.append((scale, ahead, run.final[scale][ahead].clone()))
    assert sum(int(ahead.sum()) for _, ahead, _ in kept) >= 3
    for scale, ahead, tokens in kept:
        assert torch.equal(run.pyramid.tokens[scale][ahead], tokens)


OPTIONS: dict[str, Any] = {"cfg": 1.5, "top_k": 64}


def test_coupled_tokens_are_those_of_plain_decoding() -> None:
    target, draft = NextScaleDecoder(load_var()), NextScaleDecoder(load_var_draft())
    labels = torch.arange(100) % 10
    plain, features = target.tokens(labels, seed=1, **OPTIONS)
    for drafted in (1, 4):
        decoder = SpeculativeDecoder(target, draft, rule="coupled", drafted=drafted)
        seen: list[int] = []
        result = decoder.tokens(
            labels, seed=1, progress=lambda k, _, seen=seen: seen.append(k), **OPTIONS
        )
        assert all(torch.equal(a, b) for a, b in zip(result.tokens, plain, strict=True))
        assert torch.equal(result.f_hat, features) and seen == [0, 1, 2, 3, 4]
    passes = 0
    for i in range(20):
        result = decoder.tokens(labels[i : i + 1], seed=1, first_sample=i, **OPTIONS)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(result.tokens, plain, strict=True))
        passes += result.target_passes
    assert passes < 4 * 20  # of 5 * 20


@pytest.mark.parametrize("drafted", [1, 2, 9])
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_batches_of_a_random_model(rule: str, drafted: int) -> None:
    model = random_var()
    target = NextScaleDecoder(model)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    features: list[torch.Tensor] = []
    for draft in (target, NextScaleDecoder(near(model, 0.02)), sibling(model)):
        decoder = SpeculativeDecoder(target, draft, rule=rule, drafted=drafted)
        features.clear()
        result = decoder.tokens(
            labels, seed=3, cfg=2.0, top_p=0.9, progress=lambda _, f: features.append(f.clone())
        )
        plain, f_hat = target.tokens(labels, seed=3, cfg=2.0, top_p=0.9)
        if rule == "coupled" or draft is target:
            assert all(torch.equal(a, b) for a, b in zip(result.tokens, plain, strict=True))
            assert torch.equal(result.f_hat, f_hat)
        # Features belong to the tokens, after each scale.
        sums = model.vae.quantize.embed_to_fhat(
            [model.vae.quantize._grid(t, s) for t, s in zip(result.tokens, (1, 2, 3, 4))]  # noqa: B905
        )
        assert len(features) == 4
        for a, b in zip(features, sums, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        if draft is target:
            assert result.target_passes == -(-4 // (drafted + 1))
            checked = [a for a in result.acceptance if a is not None]
            assert checked and all(a == 1 for a in checked)
        assert result.target_passes <= 4


def test_rejection_accepts_more_scales_jointly() -> None:
    target, draft = NextScaleDecoder(load_var()), NextScaleDecoder(load_var_draft())
    labels = torch.arange(16) % 10
    passes = {}
    for mode in ("token", "joint"):
        decoder = SpeculativeDecoder(target, draft, mode=mode, drafted=4)
        passes[mode] = sum(
            decoder.tokens(labels[i : i + 1], seed=2, first_sample=i, **OPTIONS).target_passes
            for i in range(16)
        )
    assert passes["joint"] < passes["token"] < 4 * 16


def test_coarser_copies_of_the_target_are_good_drafts() -> None:
    model = load_var()
    target = NextScaleDecoder(model)
    labels = torch.arange(10)
    passes, errors = [], []
    for draft in (
        NextScaleDecoder(model, weights="bfloat16"),
        NextScaleDecoder(model, weights="int8"),
        emulate_quantised_weights(model, 8),
        emulate_quantised_weights(model, 4),
        emulate_quantised_weights(model, 2),
    ):
        if isinstance(draft, VAR):
            weight, rounded = (m.blocks[0].ffn.fc1.weight for m in (model, draft))
            errors.append(float((weight - rounded).abs().max() / weight.abs().max()))
            assert draft.vae is model.vae
        decoder = SpeculativeDecoder(target, draft, drafted=4)
        passes.append(sum(decoder.tokens(labels[i : i + 1]).target_passes for i in range(10)))
    assert passes[0] <= 16 and max(passes[1:3]) <= 25 and passes[2] <= passes[3] < passes[4]
    np.testing.assert_array_less(errors, [1 / 253, 1 / 13.9, 1 / 1.9])
    with pytest.raises(ValueError, match="'bits' expected 2 to 8, got 1"):
        emulate_quantised_weights(model, 1)


def test_greedy_decoding_is_the_targets() -> None:
    model = random_var()
    target = NextScaleDecoder(model)
    labels = torch.tensor([0, 4, -1, 2])
    plain, _ = target.tokens(labels, temperature=0.0)
    for draft in (sibling(model), near(model, 0.02)):
        result = speculative(target, draft, labels, drafted=2, temperature=0.0)
        assert all(torch.equal(a, b) for a, b in zip(result.tokens, plain, strict=True))


def plan(acceptance: float, draft_cost: float) -> DraftPlan:
    lengths = [1, 4, 9, 16]
    return DraftPlan(
        1, lengths, [1.0, 0.01, 0.0], [draft_cost, 0.0, 0.0], [0.0] * 4, [0.0] * 4, [acceptance] * 4
    )


def test_plan_drafts_where_it_pays() -> None:
    assert not any(map(any, plan(0.99, 1.0).choice()))  # a draft as slow as the target
    assert not any(map(any, plan(0.0, 0.1).choice()))  # a draft that is never right
    best = plan(1.0, 0.01)
    assert best.choice()[0][0] == 3  # all in one pass
    seconds, _ = best.expected()
    assert seconds == pytest.approx(1 + 0.01 * 30 + 3 * 0.01)
    assert best.plain_seconds() == pytest.approx(4 + 0.01 * 30)
    # A trial overrules a promise.
    slow = DraftPlan(**{**best.to_dict(), "trial": [1.0, 1.0]})
    assert not any(map(any, slow.choice()))
    # Expected cost by hand: one drafted scale of acceptance a, S = 2.
    two = DraftPlan(1, [1, 4], [1.0, 0, 0], [0.1, 0, 0], [0.0] * 2, [0.05] * 2, [0.8] * 2)
    assert two.expected()[0] == pytest.approx(1 + 0.1 + 0.05 + 0.2 * 1)


@pytest.mark.parametrize(
    "drafted, spread, gains", [(0.9, 0.05, True), (0.96, 1.5, False), (1.0, 0.5, False)]
)
def test_a_trial_counts_its_own_noise(
    drafted: float, spread: float, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that is as fast as plain decoding, or too uncertain, is not taken for a lucky draw."""
    clock, noise = [0.0], np.random.default_rng(3)

    def spend(seconds: float, image: int) -> None:
        clock[0] += seconds * (1 + spread * (noise.random() - 0.5))

    monkeypatch.setattr(draft_plan.time, "perf_counter", lambda: clock[0])
    plain, tried = draft_plan.run_trial(partial(spend, 0.01), partial(spend, 0.01 * drafted), 3)
    assert (tried <= draft_plan.GAIN * plain) == gains
    clock[0], rounds = 0.0, []
    draft_plan.run_trial(lambda i: spend(9.0, i), lambda i: rounds.append(i), 3)
    assert rounds == [0, 0, 1, 2]  # no longer than needed where decoding is slow


def test_costs_are_fitted_without_negative_terms() -> None:
    work = np.array([[1.0, n, n * m] for n in (1, 4, 9) for m in (1, 5, 14)])
    np.testing.assert_allclose(fit_cost(work, work @ [2.0, 0.5, 0.01]), [2.0, 0.5, 0.01])
    assert min(fit_cost(work, work @ [2.0, -0.01, 0.01])) >= 0
    assert pass_seconds([1.0, 0.5, 0.25], [1, 4, 9], 1, 3) == 1 + 0.5 * 13 + 0.25 * (20 + 126)


def test_auto_measures_once_and_keeps_the_law() -> None:
    model = random_var()
    target = NextScaleDecoder(model)
    decoder = SpeculativeDecoder(target, sibling(model), rule="coupled")
    labels = torch.tensor([0, 4])
    result = decoder.tokens(labels, seed=3, cfg=2.0)
    plain, _ = target.tokens(labels, seed=3, cfg=2.0)
    assert all(torch.equal(a, b) for a, b in zip(result.tokens, plain, strict=True))
    (made,) = decoder.plans.values()
    assert made.batch == 2 and all(0 < a < 1 for a in made.acceptance)
    kept = DraftPlan(**json.loads(json.dumps(made.to_dict())))
    assert kept == made
    decoder.use(plan(1.0, 0.01), cfg=2.0)  # for batches of 1
    assert decoder.tokens(labels[:1], seed=3, cfg=2.0).draft_passes >= 3
    assert len(decoder.plans) == 2
    with pytest.raises(ValueError, match="'plan' expected one for 4 scales, got 2"):
        decoder.use(DraftPlan(1, [1, 4], [1.0, 0, 0], [1.0, 0, 0], [0.0] * 2, [0.0] * 2, [0.5] * 2))


def test_refuses_bad_input() -> None:
    target = random_var()
    draft = sibling(target)
    for options, message in (
        ({"rule": "greedy"}, "'rule' expected one of"),
        ({"mode": "chain"}, "'mode' expected one of"),
        ({"drafted": -1}, "'drafted' expected 'auto' or an integer"),
        ({"drafted": "all"}, "'drafted' expected 'auto' or an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            SpeculativeDecoder(target, draft, **options)
    with pytest.raises(ValueError, match="'draft' expected the tokeniser of 'target'"):
        SpeculativeDecoder(target, random_var(seed=2))
    with pytest.raises(ValueError, match="'draft' expected patch_nums"):
        SpeculativeDecoder(target, random_var(sides=(1, 2, 4)))
    decoder = SpeculativeDecoder(target, draft)
    with pytest.raises(ValueError, match="'samples' expected a number >= 1, got 0"):
        decoder.calibrate(torch.tensor([1]), samples=0)
    with pytest.raises(ValueError, match="argument 'labels' expected shape"):
        decoder.calibrate(torch.zeros(0, dtype=torch.int64))
    for labels, options, message in (
        (torch.tensor([6]), {}, "argument 'labels' expected"),
        (torch.tensor([0.5]), {}, "argument 'labels' expected"),
        (torch.tensor([0]), {"top_p": 0.0}, "argument 'top_p' expected"),
        (torch.tensor([0]), {"more_smooth": True}, "'more_smooth' expected False"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.tokens(labels, **options)
