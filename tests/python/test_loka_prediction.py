"""What Probe predicts against what real inputs of trained models show; N(0, 1) inputs beside it (methods.md 1e)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loka_support import STEPS, ads_log, loss_of, ranker, real_inputs, trained

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")

from octavo import loka, nn
from octavo.loka.candidates import own_candidate
from octavo.loka.row_model import cholesky
from octavo.ops import errors, quantize

ROWS, DRAWS = 256, 16
CLASSES = ("bf16", "e4m3_weight_only", "e4m3_row", "int8_dynamic")
Metric = Callable[[torch.Tensor, torch.Tensor], float]


def _measured(
    candidate: loka.Candidate, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, metric: Metric
) -> float:
    """Mean over groups of ROWS real rows, as a draw has them."""
    values = []
    for part in x.split(ROWS):
        operands = loka.Operands(part, torch.empty(0), weight, bias)
        values.append(metric(candidate.run(operands), operands.exact("forward")))
    return sum(values) / len(values)


def _spearman(a: list[float], b: list[float]) -> float:
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _log_ratio(a: list[float], b: list[float]) -> float:
    """Median |ln(a / b)|."""
    return float((torch.tensor(a) / torch.tensor(b)).log().abs().median())


def test_predictions_are_what_held_out_inputs_show(tmp_path: Path) -> None:
    log = ads_log(tmp_path / "log")
    held_out = log.read((STEPS + 20) * 256, (STEPS + 28) * 256)
    shapes = {
        "wukong": {
            "layers": 2, "fmb_tokens": 8, "lcb_tokens": 8, "rank": 8, "fmb": [64], "bottom": [64], "top": [96, 64]
        },
        "dlrm": {"bottom": [64, 32], "top": [96, 64]},
    }  # fmt: skip
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for kind, shape in shapes.items():
        model = ranker(log, kind, **shape)
        probe = trained(log, model)
        learned, normal = (
            probe.evaluate(draws=DRAWS, inputs=inputs, measure_costs=False)
            for inputs in ("learned", "standard_normal")
        )  # fmt: skip
        for path, x in real_inputs(model, held_out).items():
            site = probe.sites[path]
            metrics: dict[str, Metric] = {"signal_rel": errors.signal_relative}
            if site.n > 1:  # a norm over one column leaves nothing
                metrics["post_norm"] = lambda y, ref, norm=site.cpu_norm: errors.post_norm_error(y, ref, norm)
            for name, metric in metrics.items():
                for predicted, blind in zip(learned.at(path), normal.at(path), strict=True):
                    candidate = own_candidate(predicted.numerics, "forward")
                    assert candidate is not None
                    real = _measured(candidate, x[: 8 * ROWS], site.weight, site.bias, metric)
                    triple = predicted.errors[name].value, blind.errors[name].value, real
                    found.setdefault((name, predicted.numerics), []).append(triple)
    assert len(found) == 2 * len(CLASSES)
    for (name, numerics), triples in found.items():
        predicted_, blind_, real_ = (list(column) for column in zip(*triples, strict=True))
        line = {
            "learned": (_spearman(predicted_, real_), _log_ratio(predicted_, real_)),
            "N(0, 1)": (_spearman(blind_, real_), _log_ratio(blind_, real_)),
        }
        print(f"{name} {numerics} {len(real_)} sites: Spearman, median |log ratio| {line}")
        assert line["learned"][0] >= 0.9, name
        assert line["learned"][1] <= 0.1, name
        assert line["N(0, 1)"][0] < 0.8, name
        assert line["N(0, 1)"][1] > 2 * line["learned"][1], name


def test_gradients_predict_grad_input(tmp_path: Path) -> None:
    log = ads_log(tmp_path / "log")
    model = ranker(log, "dlrm", bottom=[64, 32], top=[96, 64])
    report = trained(log, model).evaluate(["e4m3_row", "int8_dynamic"], DRAWS, measure_costs=False)
    watcher = loka.Probe(model, every=1, most_rows=4096)
    real: dict[str, list[torch.Tensor]] = {path: [] for path in watcher.sites}
    for path, site in watcher.sites.items():
        site.gradient.observe = real[path].append  # type: ignore[method-assign]
    loss_of(model, log.read((STEPS + 20) * 256, (STEPS + 28) * 256)).backward()
    ratios = []
    for path, site in watcher.sites.items():
        (grad,) = real[path]
        for finding in report.at(path, "grad_input"):
            candidate = own_candidate(finding.numerics, "grad_input")
            assert candidate is not None
            values = []
            for part in grad.split(ROWS):
                operands = loka.Operands(torch.empty(0), part, site.weight, None)
                values.append(errors.relative_l1(candidate.run(operands), operands.exact("grad_input")))
            ratios.append(abs(math.log(finding.errors["rel_l1"].value / (sum(values) / len(values)))))
    watcher.close()
    print("grad_input: median |log ratio|", sorted(ratios)[len(ratios) // 2])
    assert sorted(ratios)[len(ratios) // 2] <= 0.1


def _probed(x: torch.Tensor, layer: torch.nn.Module, most_rows: int = 512) -> loka.Probe:
    """A Probe of one layer that saw x."""
    model = torch.nn.Sequential(layer)
    probe = loka.Probe(model, every=1, most_rows=most_rows)
    with torch.no_grad():
        for part in x.split(512):
            model(part)
            probe.step()
    probe.close()
    return probe


def _tensor_int8(is_faulty: bool) -> Callable[[loka.Operands], torch.Tensor]:
    """INT8 with a zero point per tensor; the fault forgets to add its share back."""

    def run(operands: loka.Operands) -> torch.Tensor:
        x = operands.x
        scale = (x.max() - x.min()) / 254
        zero = (x.mean() / scale).round()
        codes = ((x / scale).round() - zero).clamp(-127, 127)
        values = (codes if is_faulty else codes + zero) * scale
        z = values @ operands.weight.T
        return z if operands.bias is None else z + operands.bias

    return run


def _row_e4m3(is_faulty: bool) -> Callable[[loka.Operands], torch.Tensor]:
    """E4M3 with a scale per row; the fault takes the scale of the row before."""

    def run(operands: loka.Operands) -> torch.Tensor:
        q = quantize(operands.x, "e4m3", "row")
        scale = q.scale.roll(1) if is_faulty else q.scale
        z = q.data.float() * scale[:, None] @ operands.weight.T
        return z if operands.bias is None else z + operands.bias

    return run


@pytest.mark.parametrize("fault", ["zero point", "scale"])
def test_learned_inputs_show_faults_that_normal_ones_hide(fault: str) -> None:
    """Faults that matter only with an offset, or only with rows of different size."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 96, generator=g)
    x = (x + 3 if fault == "zero point" else x * (1.5 * torch.randn(4096, 1, generator=g)).exp()).contiguous()
    make = _tensor_int8 if fault == "zero point" else _row_e4m3
    right, faulty = loka.Candidate("right", make(False)), loka.Candidate("faulty", make(True))
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 48)
    probe = _probed(x, layer)

    def separation(inputs: str) -> float:
        a, b = probe.evaluate([right, faulty], DRAWS, inputs=inputs, measure_costs=False).at("0")
        return b.errors["rel_l1"].value / a.errors["rel_l1"].value

    real = [_measured(c, x, layer.weight.detach(), layer.bias.detach(), errors.relative_l1) for c in (right, faulty)]
    learned, normal = separation("learned"), separation("standard_normal")
    print(f"{fault}: faulty over right: real {real[1] / real[0]:.2f}, learned {learned:.2f}, N(0, 1) {normal:.2f}")
    assert real[1] / real[0] > 10
    assert learned > 10
    assert learned == pytest.approx(real[1] / real[0], rel=0.25)
    # Rows of N(0, 1) differ in size too, a little.
    assert normal < (1.05 if fault == "zero point" else learned / 5)


SKEWED = {
    "rectified": lambda z, g: z.relu(),
    "heavy tails": lambda z, g: z**3,
    "positive": lambda z, g: z.exp(),
    "sparse": lambda z, g: z * (torch.rand(z.shape, generator=g) < 0.05),
    "one-hot beside dense": lambda z, g: torch.where(
        torch.arange(z.shape[1]) < 64, z, 3.0 * (torch.rand(z.shape, generator=g) < 0.02)
    ),
    "features of all scales": lambda z, g: z * torch.logspace(-3, 3, z.shape[1]),
    "rows of all scales": lambda z, g: z * (1.5 * torch.randn(len(z), 1, generator=g)).exp(),
}


@pytest.mark.parametrize("kind", SKEWED)
def test_inputs_that_are_not_normal(kind: str) -> None:
    """INT8, where distributions bite: within 17% of what real rows show; a plain normal fit is off by up to 40%."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8192, 128, generator=g) @ (torch.randn(128, 128, generator=g) / 128**0.5)
    x = SKEWED[kind](z, g).contiguous()
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 64)
    (finding,) = _probed(x, layer).evaluate(["int8_dynamic"], DRAWS, measure_costs=False).at("0")
    candidate = own_candidate("int8_dynamic", "forward")
    assert candidate is not None
    for name, metric in (("signal_rel", errors.signal_relative), ("post_norm", errors.post_norm_error)):
        real = _measured(candidate, x, layer.weight.detach(), layer.bias.detach(), metric)
        assert abs(math.log(finding.errors[name].value / real)) < 0.16, name


def test_outlier_rows_refuse_a_scale_per_tensor_and_not_one_per_row() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 64, generator=g)
    x[torch.rand(8192, generator=g) < 0.01] *= 3e4
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)

    def per_tensor(operands: loka.Operands) -> torch.Tensor:
        return quantize(operands.x, "e4m3", "tensor").dequantize() @ operands.weight.T

    tensor = loka.Candidate("e4m3_tensor", per_tensor, format="e4m3", scaling="tensor")
    report = _probed(x, layer).evaluate([tensor, "e4m3_row"], 40, measure_costs=False)
    by_name = {finding.numerics: finding for finding in report.at("0")}
    real = _measured(tensor, x, layer.weight.detach(), None, errors.post_norm_error)
    assert by_name["e4m3_tensor"].errors["post_norm"].value == pytest.approx(real, rel=0.15)
    assert {"tail", "underflow"} <= set(by_name["e4m3_tensor"].concerns)
    assert real > 2.5 * by_name["e4m3_row"].errors["post_norm"].value
    assert by_name["e4m3_row"].concerns == ()


def test_offsets_and_mean_cancellation_are_concerns() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4096, 80, generator=g)
    for x, norm, expected in ((z, None, ()), (z + 10, None, ("offset",))):
        torch.manual_seed(0)
        layer = nn.LinearNorm(80, 40, norm=norm, activation=None)
        (finding,) = _probed(x, layer).evaluate(["e4m3_row"], 8, measure_costs=False).at("0")
        assert finding.concerns == expected
        exact = loka.Operands(x, torch.empty(0), layer.weight.detach(), layer.bias.detach()).exact("forward")
        candidate = own_candidate("e4m3_row", "forward")
        assert candidate is not None
        y = candidate.run(loka.Operands(x, torch.empty(0), layer.weight.detach(), layer.bias.detach()))
        assert finding.errors["signal_rel"].value == pytest.approx(errors.signal_relative(y, exact), rel=0.1)


def test_a_matrix_normal_is_recovered_whatever_its_scale() -> None:
    g = torch.Generator().manual_seed(0)
    n, k = 6, 5
    u, v = (torch.randn(d, 2 * d, generator=g, dtype=torch.float64) for d in (n, k))
    u, v = u @ u.T / (2 * n), v @ v.T / (2 * k)
    mean = torch.randn(n, k, generator=g, dtype=torch.float64)
    for scale in (1.0, 1e-4):
        model = loka.WeightModel(n, k, memory=0.999)
        noise = torch.Generator().manual_seed(1)
        for _ in range(500):
            z = torch.randn(n, k, generator=noise, dtype=torch.float64)
            model.observe(mean + scale * cholesky(u) @ z @ cholesky(v).T)
        rows, columns = model.covariances()
        expected = scale**2 * torch.kron(v, u)
        assert float((torch.kron(columns, rows) - expected).norm() / expected.norm()) < 0.1
        assert float(rows.trace()) == pytest.approx(n)
        drawn = torch.stack([model.draw(noise) for _ in range(4000)]).double()
        torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.2 * scale)
        spread = drawn.transpose(1, 2).flatten(1).T.cov()
        assert float((spread - expected).norm() / expected.norm()) < 0.15
