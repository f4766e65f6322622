"""Losses for late outcomes: formulas by hand, gradients, unbiased streams, and that each learns what it should."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from octavo.training.delayed import DEFER, DFM, ESDFM, FNC, FNW, FSIW, BucketHazard, DelayedLoss, ExampleBatch, Examples

DAY_MS, DAY = 86_400_000, 86_400.0
LOSSES: dict[str, DelayedLoss] = {
    "dfm": DFM(),
    "dfm_detached": DFM(detach=True),
    "hazard": BucketHazard(tuple(DAY * d for d in (0, 0.5, 1, 2, 4, 7, 14, 30))),
    "fnw": FNW(7 * DAY),
    "fnc": FNC(7 * DAY),
    "esdfm": ESDFM(DAY, 7 * DAY),
    "defer": DEFER(DAY, 7 * DAY),
    "fsiw": FSIW(tuple(DAY * d for d in (0, 1, 2, 3, 5, 7))),
}


def batch_of(examples: Examples) -> ExampleBatch:
    return examples.take(np.arange(len(examples)))


def stream(count: int, seed: int = 0, p: float = 0.3, mean: float = 3.0) -> tuple[Any, Any]:
    """Times over 60 days; delays in s of a share p of them, nan of the others."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, 60 * DAY_MS, count))
    return time, np.where(rng.random(count) < p, rng.exponential(mean * DAY, count), np.nan)


def outputs_of(loss: DelayedLoss, value: float = 0.0, count: int = 1) -> dict[str, torch.Tensor]:
    return {name: torch.full((count,), value, dtype=torch.float64, requires_grad=True) for name in loss.outputs}


def test_dfm_by_hand() -> None:
    z, rate = torch.tensor([0.4, -1.0], dtype=torch.float64), torch.tensor([0.2, -0.5], dtype=torch.float64)
    batch = ExampleBatch({}, torch.tensor([2 * DAY, math.nan]), torch.tensor([9 * DAY, 3 * DAY]))
    p, lam = 1 / (1 + np.exp([-0.4, 1.0])), np.exp([0.2, -0.5])
    expected = (-math.log(p[0]) - math.log(lam[0]) + lam[0] * 2 - math.log(1 - p[1] + p[1] * math.exp(-lam[1] * 3))) / 2
    assert float(DFM().loss({"convert": z, "rate": rate}, batch)) == pytest.approx(expected, rel=1e-7)
    found = DFM().probability({"convert": z, "rate": rate}, 7 * DAY)
    np.testing.assert_allclose(found, p * -np.expm1(-lam * 7), rtol=1e-7)


def test_dfm_detached_has_no_gradient_to_the_rate_from_negatives() -> None:
    batch = ExampleBatch({}, torch.tensor([math.nan]), torch.tensor([3 * DAY]))
    for detach, moves in ((False, True), (True, False)):
        outputs = outputs_of(DFM())
        DFM(detach).loss(outputs, batch).backward()
        assert bool(outputs["convert"].grad.abs() > 0)
        assert (outputs["rate"].grad is not None and bool(outputs["rate"].grad.abs() > 0)) == moves


def test_dfm_takes_events_that_can_no_longer_convert() -> None:
    outputs = outputs_of(DFM(), 0.3)
    batch = ExampleBatch({}, torch.tensor([math.nan]), torch.tensor([math.inf]))
    value = DFM().loss(outputs, batch)
    value.backward()
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(0.3)))  # -ln(1 - p)
    assert all(bool(torch.isfinite(z.grad).all()) for z in outputs.values())


def test_bucket_hazard_by_hand() -> None:
    loss = BucketHazard((0.0, 10.0, 20.0, 40.0))
    z = torch.tensor([[0.5, -0.3, 1.0]] * 4, dtype=torch.float64)
    h = 1 / (1 + np.exp(-z[0].numpy()))
    outputs = {f"hazard_{k}": z[:, k] for k in range(3)}
    # In the second bucket, on its right edge; censored within the third; censored at 10; later than all edges.
    batch = ExampleBatch({}, torch.tensor([20.0, math.nan, math.nan, 99.0]), torch.tensor([99.0, 39.0, 10.0, 99.0]))
    expected = [
        -np.log(1 - h[0]) - np.log(h[1]),
        -np.log(1 - h[0]) - np.log(1 - h[1]),
        -np.log(1 - h[0]),
        -np.log(1 - h).sum(),
    ]
    assert float(loss.loss(outputs, batch)) == pytest.approx(np.mean(expected), rel=1e-9)
    survived = np.concatenate([[1.0], np.cumprod(1 - h)])
    for window, exact in ((10, 1 - survived[1]), (40, 1 - survived[3]), (0, 0.0)):
        np.testing.assert_allclose(loss.probability(outputs, window), exact, atol=1e-12)
    np.testing.assert_allclose(loss.probability(outputs, 15), 1 - survived[1] * (1 - h[1]) ** 0.5)
    with pytest.raises(ValueError, match="window: found 50 s; expected 0 to the last edge"):
        loss.probability(outputs, 50)
    with pytest.raises(ValueError, match="edges: found"):
        BucketHazard((1.0, 2.0))


def test_weights_by_hand() -> None:
    p, dp, rn = (1 / (1 + math.exp(-v)) for v in (0.4, -1.0, 0.8))
    logits = {"convert": 0.4, "delayed": -1.0, "real": 0.8}
    outputs = {k: torch.tensor([v] * 2, dtype=torch.float64) for k, v in logits.items()}
    nothing = torch.tensor([math.nan] * 2)
    y = torch.tensor([1.0, 0.0])
    batch = ExampleBatch({"convert": y, "delayed": nothing, "real": nothing}, nothing, nothing)
    expected = {
        "fnw": (1 + p, (1 - p) * (1 + p)),
        "fnc": (1.0, 1.0),
        "esdfm": (1 + dp, (1 + dp) * rn),
        "defer": (p / (p - dp / 2), (1 - p) / (1 - p + dp / 2)),
    }
    for name, (one, zero) in expected.items():
        found = float(LOSSES[name].loss(outputs, batch))
        assert found == pytest.approx((-one * math.log(p) - zero * math.log(1 - p)) / 2, rel=1e-7), name
    np.testing.assert_allclose(FNC(7.0).probability({"convert": torch.tensor([-1.0, 2.0])}, 7.0), [math.exp(-1), 1.0])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences_where_there_are_weights_too(name: str) -> None:
    """Weights are constants: the gradient of the loss with them held still."""
    loss = LOSSES[name]
    time, delay = stream(400)
    examples = loss.examples(time, delay, 40 * DAY_MS) if "fn" in name or name in ("esdfm", "defer") else None
    if examples is None:
        kept = time <= 40 * DAY_MS
        examples = loss.examples(time[kept], delay[kept], 40 * DAY_MS)
    batch = batch_of(examples)
    generator = torch.Generator().manual_seed(1)
    values = {k: torch.randn(len(examples), generator=generator, dtype=torch.float64) for k in loss.outputs}
    leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
    loss.loss(leaves, batch).backward()
    if name in ("dfm", "hazard", "fnc"):  # no weights
        for key in loss.outputs:
            step = torch.randn(len(examples), generator=generator, dtype=torch.float64)
            ends = [loss.loss({**values, key: values[key] + s * 1e-6 * step}, batch) for s in (1, -1)]
            slope = float(ends[0] - ends[1]) / 2e-6
            assert float((leaves[key].grad * step).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())


def test_examples_are_those_of_the_stream() -> None:
    """Four events at 0: outcomes after half a day, 3 days and 9 days, and none; looked at after 8 days."""
    time = np.zeros(4, np.int64)
    delay = np.array([0.5, 3.0, 9.0, np.nan]) * DAY

    def seen(loss: DelayedLoss, days: float) -> list[tuple[Any, ...]]:
        found = loss.examples(time, delay, round(days * DAY_MS))
        columns = [np.nan_to_num(found.targets[name], nan=-1).tolist() for name in loss.outputs]
        return sorted(zip((found.time / DAY_MS).tolist(), found.row.tolist(), *columns, strict=True))

    fakes = [(0.0, 0, 0.0), (0.0, 1, 0.0), (0.0, 2, 0.0), (0.0, 3, 0.0), (0.5, 0, 1.0), (3.0, 1, 1.0)]
    assert seen(FNW(7 * DAY), 8) == seen(FNC(7 * DAY), 30) == fakes
    after = [(1.0, 0, 1.0), (1.0, 1, 0.0), (1.0, 2, 0.0), (1.0, 3, 0.0)]
    truth = [(7.0, 0, -1, 0.0, -1), (7.0, 1, -1, 1.0, 0.0), (7.0, 2, -1, 0.0, 1.0), (7.0, 3, -1, 0.0, 1.0)]
    first = [(*row, -1, -1) for row in after]
    assert seen(ESDFM(DAY, 7 * DAY), 8) == sorted([*first, (3.0, 1, 1.0, -1, -1), *truth])
    assert seen(ESDFM(DAY, 7 * DAY), 2) == first
    twice = [(*row, -1) for row in after] + [(3.0, 1, 1.0, -1), (7.0, 0, 1.0, -1), (7.0, 2, 0.0, -1), (7.0, 3, 0.0, -1)]
    closing = [(7.0, 0, -1, 0.0), (7.0, 1, -1, 1.0), (7.0, 2, -1, 0.0), (7.0, 3, -1, 0.0)]
    assert seen(DEFER(DAY, 7 * DAY), 8) == sorted([*twice, *closing])
    found = DFM().examples(time, delay, 8 * DAY_MS, closed=np.array([np.nan, np.nan, np.nan, 5.0 * DAY_MS]))
    np.testing.assert_allclose(found.delay / DAY, [0.5, 3.0, np.nan, np.nan])
    np.testing.assert_allclose(found.elapsed / DAY, [8.0, 8.0, 8.0, np.inf])
    with pytest.raises(ValueError, match="until: 86400 s before event 0"):
        DFM().examples(time + DAY_MS, delay, 0)


def test_what_can_no_longer_come_is_known_when_it_closes() -> None:
    """Window 7 days, wait 1; closed after 2 days: one without outcome, one whose outcome came on the last day, one that
    stays open."""
    time = np.zeros(3, np.int64)
    delay, closed = np.array([np.nan, 2.0, np.nan]) * DAY, np.array([2.0, 2.0, np.nan]) * DAY_MS

    def seen(loss: DelayedLoss, days: float) -> list[tuple[Any, ...]]:
        found = loss.examples(time, delay, round(days * DAY_MS), closed)
        columns = [np.nan_to_num(found.targets[name], nan=-1).tolist() for name in loss.outputs]
        return sorted(zip((found.time / DAY_MS).tolist(), found.row.tolist(), *columns, strict=True))

    first = [(1.0, row, 0.0, -1, -1) for row in range(3)]
    known = [(2.0, 0, -1, 0.0, 1.0), (2.0, 1, -1, 1.0, 0.0), (2.0, 1, 1.0, -1, -1)]
    assert seen(ESDFM(DAY, 7 * DAY), 3) == sorted([*first, *known])
    assert seen(ESDFM(DAY, 7 * DAY), 7) == sorted([*first, *known, (7.0, 2, -1, 0.0, 1.0)])
    twice = [(1.0, row, 0.0, -1) for row in range(3)] + [(2.0, 0, 0.0, -1), (2.0, 1, 1.0, -1)]
    assert seen(DEFER(DAY, 7 * DAY), 3) == sorted([*twice, (2.0, 0, -1, 0.0), (2.0, 1, -1, 1.0)])


def test_feedback_shift_weights_by_hand() -> None:
    """Looked at on day 30, window 7 d: events of ages 3 and 10 days, the latter being 3 at the counterfactual
    deadline."""
    loss = FSIW((0.0, 2 * DAY, 7 * DAY))
    age = np.array([3, 3, 10, 10, 10, 20])
    time = ((30 - age) * DAY_MS).astype(np.int64)
    delay = np.array([1.0, np.nan, 1.0, 5.0, np.nan, 6.0]) * DAY
    found = loss.examples(time, delay, 30 * DAY_MS)
    shown = {name: np.nan_to_num(values, nan=-1).tolist() for name, values in found.targets.items()}
    assert shown == {
        "convert": [1, 0, 1, 1, 0, 1],
        "observed_0": [-1] * 6,
        "observed_1": [-1, -1, 1, 0, -1, -1],
        "none_0": [-1] * 6,
        "none_1": [-1, -1, -1, 0, 1, -1],
    }
    closed = np.full(6, 22.0) * DAY_MS  # before the deadline: nothing to learn of those
    assert np.isnan(loss.examples(time, delay, 30 * DAY_MS, closed).targets["none_1"]).all()
    p, observed, none = (1 / (1 + math.exp(-v)) for v in (0.4, -1.0, 0.8))
    logits = {"convert": 0.4, "observed_0": 9.0, "observed_1": -1.0, "none_0": 9.0, "none_1": 0.8}
    outputs = {k: torch.tensor([v] * 3, dtype=torch.float64) for k, v in logits.items()}
    nothing = torch.tensor([math.nan] * 3)
    targets = {**dict.fromkeys(logits, nothing), "convert": torch.tensor([1.0, 0.0, 0.0])}
    batch = ExampleBatch(targets, nothing, torch.tensor([3 * DAY, 3 * DAY, math.inf]))
    expected = (-math.log(p) / observed - none * math.log(1 - p) - math.log(1 - p)) / 3
    assert float(loss.loss(outputs, batch)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_each_learns_the_truth_of_a_world_without_features(name: str) -> None:
    """One logit per output, minimised over a whole stream of 12,000 events: P(within 7 days) = 0.3 (1 - e^(-7/3)).
    Those with weights are fixed points: weights are computed anew until nothing moves."""
    loss = LOSSES[name]
    time, delay = stream(12_000, seed=3)
    until = 60 * DAY_MS
    batch = batch_of(loss.examples(time, delay, until))
    outputs = {k: torch.zeros(1, dtype=torch.float64, requires_grad=True) for k in loss.outputs}
    size = len(batch.delay)
    leaves = list(outputs.values())
    optimizer = torch.optim.LBFGS(leaves, max_iter=60) if name in ("dfm", "hazard", "fnc") else None
    expanded = lambda: {k: v.expand(size) for k, v in outputs.items()}  # noqa: E731
    if optimizer is not None:

        def closure() -> float:
            optimizer.zero_grad()
            value = loss.loss(expanded(), batch)
            value.backward()
            return float(value.detach())

        optimizer.step(closure)
    else:
        optimizer_ = torch.optim.Adam(leaves, lr=0.05)
        for step in range(320):
            optimizer_.param_groups[0]["lr"] = 0.05 if step < 250 else 0.005
            optimizer_.zero_grad()
            loss.loss(expanded(), batch).backward()
            optimizer_.step()
    with torch.no_grad():
        found = float(loss.probability(outputs, 7 * DAY))
    exact = 0.3 * -math.expm1(-7 / 3)
    if name == "dfm_detached":  # its rate is that of the outcomes alone, so the young tail biases it: a known price
        assert found == pytest.approx(exact, rel=0.1)
    else:
        assert found == pytest.approx(exact, rel=0.06)
    if name == "dfm":
        assert float(outputs["rate"].detach().exp()) == pytest.approx(1 / 3, rel=0.05)


def test_dfm_minimum_is_that_of_the_likelihood_by_scipy() -> None:
    time, delay = stream(3_000, seed=5)
    batch = batch_of(DFM().examples(time, delay, 60 * DAY_MS))
    d, e = batch.delay.double().numpy() / DAY, batch.elapsed.double().numpy() / DAY
    came = ~np.isnan(d)

    def objective(at: np.ndarray) -> float:
        p, lam = 1 / (1 + np.exp(-at[0])), np.exp(at[1])
        some = (-np.log(p) - np.log(lam) + lam * d[came]).sum()
        return float(some - np.log(1 - p + p * np.exp(-lam * e[~came])).sum()) / len(d)

    best = minimize(objective, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    outputs = {"convert": torch.tensor([best.x[0]]).expand(len(d)), "rate": torch.tensor([best.x[1]]).expand(len(d))}
    assert float(DFM().loss(outputs, batch)) == pytest.approx(best.fun, rel=1e-6)


def test_a_window_that_is_not_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="this loss knows its own, 604800.0 s, alone"):
        FNW(7 * DAY).probability({"convert": torch.zeros(1)}, 3 * DAY)
