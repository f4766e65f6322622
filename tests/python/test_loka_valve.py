"""The safety valve: what closes it, what does not, once, logged, in compiled training too; and the table of explain."""

import logging
import math
import sys
from dataclasses import replace

import pytest
import torch
from loka_reports import SITES, Net, X, finding, report, report_for

from octavo import loka
from octavo.loka import Closing, RecentRows, SafetyValve
from octavo.loka.explaining import COLUMNS, explain_rows
from octavo.loka.valve import figures
from octavo.ops.dispatch import Plan, PlanEntry, Requirement

LOW = {(s.path, d): "bf16" for s in SITES[:3] for d in loka.DIRECTIONS}
SHARED = {**LOW, ("middle", "grad_weight"): "e4m3_row"}  # scales over rows
CALM = {"rows": 5000, "mean_square_share": 0.5, "crest": 3.0, "amax_p50": 2.0, "amax_p999": 8.0}


class Fake:
    """A Probe as the valve sees it."""

    def __init__(self, **changed: dict[str, float]) -> None:
        self.found = {site.path: dict(CALM) for site in SITES}
        for site, values in changed.items():
            self.found[site] |= values

    def summary(self, site: str) -> dict[str, float]:
        return dict(self.found[site])


def _installed(choices=LOW) -> Net:
    return loka.install(Net(), loka.solve(report_for(choices), Requirement(max_signal_rel=0.05), training=True))


def test_a_probe_is_watched_itself() -> None:
    model = Net()
    probe = loka.Probe(model, every=1)
    model(X)
    probe.step()
    loka.install(model, loka.solve(report_for(LOW), Requirement(max_signal_rel=0.05), training=True))
    valve = SafetyValve(model, probe, every=1)
    assert valve.step() == []
    model(X.clone().index_fill_(0, torch.arange(200), math.nan))
    probe.step()
    assert {closing.figure for closing in valve.step()} == {"nan_rows"}
    assert model.body.numerics == "fp32"
    with pytest.raises(KeyError, match="'nowhere' is not a linear layer of the model; there are body"):
        probe.summary("nowhere")


@pytest.mark.parametrize(
    ("values", "figure", "before", "now"),
    [
        ({"mean_square_share": 0.8}, "offset_gain", 2**0.5, 5**0.5),
        ({"mean_square_share": 1.0}, "offset_gain", 2**0.5, 1e6),
        ({"crest": 4.6}, "crest", 3.0, 4.6),
        ({"amax_p999": 13.0}, "amax_spread", 4.0, 6.5),
        ({"nan_rows": 1}, "nan_rows", 0, 1),
        ({"infinite_rows": 2, "crest": 30.0}, "infinite_rows", 0, 2),
    ],
)
def test_a_drift_past_the_limit_closes_the_site_once(values, figure, before, now, caplog) -> None:
    model, probe = _installed(SHARED), Fake()
    valve = SafetyValve(model, probe, limit=1.5, every=2)
    assert valve.step() == valve.step() == []
    probe.found["middle"] |= values
    assert valve.step() == []  # between looks
    with caplog.at_level(logging.WARNING, "octavo.loka"):
        (closing,) = valve.step()
    assert (closing.site, closing.step, closing.figure) == ("middle", 4, figure)
    assert (closing.before, closing.now) == (pytest.approx(before), pytest.approx(now))
    assert (model.middle.numerics, model.middle.backward_numerics) == ("fp32", ("fp32", "fp32"))
    assert model.body.numerics == model.tied_a.numerics == "bf16"
    (record,) = caplog.records
    assert f"safety valve: middle goes back to high precision: {figure} was" in record.getMessage()
    assert valve.check() == []
    assert valve.closed == [closing]
    reason = dict(zip(COLUMNS, explain_rows(model)[3], strict=True))
    assert (reason["site"], reason["class"]) == ("middle", "fp32")
    assert reason["reason"].startswith(f"safety valve: {figure} was")


@pytest.mark.parametrize(
    "values",
    [{}, {"mean_square_share": 0.7}, {"mean_square_share": 0.0}, {"crest": 4.4}, {"amax_p999": 11.9},
     {"crest": math.nan}, {"amax_p50": 100.0, "amax_p999": 400.0}, {"rows": 10, "crest": 30.0}, {"rows": 0}],
)  # fmt: skip
def test_what_is_no_drift_for_the_worse_closes_nothing(values) -> None:
    model, probe = _installed(), Fake()
    valve = SafetyValve(model, probe)
    probe.found["body"] |= values
    assert valve.check() == []
    assert model.body.numerics == "bf16"


def test_large_rows_alone_close_nothing_where_rows_have_their_own_scales_or_are_few() -> None:
    for choices, rows in ((LOW, 5000), (SHARED, 4000)):
        model, probe = _installed(choices), Fake()
        valve = SafetyValve(model, probe)
        probe.found["middle"] |= {"rows": rows, "amax_p999": 100.0}
        assert valve.check() == []


def test_rows_as_they_always_were_close_nothing() -> None:
    """0.3% of the rows are ten times as large: of a few hundred, their 99.9% quantile is now one of them, now not."""
    for seed in range(4):
        torch.manual_seed(seed)

        def rows() -> torch.Tensor:
            x = torch.randn(1024, 20)
            return x.mul_(torch.where(torch.rand(1024, 1) < 0.003, 10.0, 1.0))

        model = Net()
        with loka.Probe(model, every=1) as probe:
            for _ in range(3):
                model(rows()).sum().backward()
                probe.step()
        report = probe.evaluate(candidates=["bf16", "int8_dynamic", "e4m3_row"], draws=2, measure_costs=False)
        loka.install(model, loka.solve(report_for(SHARED), Requirement(max_signal_rel=0.05), training=True))
        valve = SafetyValve(model, report, every=4)
        for _ in range(120):
            model(rows())
            valve.step()
        assert valve.closed == []


def test_a_further_site_of_a_later_plan_is_compared_with_its_first_rows() -> None:
    model = _installed({(s.path, d): "bf16" if s.path == "middle" else "fp32" for s in SITES for d in loka.DIRECTIONS})
    kept = {"middle": {"input": dict(CALM)}}
    valve = SafetyValve(model, report(settings={"statistics": kept}), every=1, least_rows=1)
    loka.install(model, loka.solve(report_for(LOW), Requirement(max_signal_rel=0.05), training=True))
    for _ in range(2):
        model(X)
        assert "body" not in [closing.site for closing in valve.step()]
    for _ in range(8):
        model(X + 100)
        valve.step()
    assert "body" in [closing.site for closing in valve.closed]


def test_the_first_rows_are_the_reference_where_there_were_none() -> None:
    probe = Fake()
    probe.found = {site.path: {} for site in SITES}
    model = _installed()
    valve = SafetyValve(model, probe)
    for site in SITES:
        probe.found[site.path] = {"rows": 5}
    assert valve.check() == []
    probe.found["body"] = {"rows": 0, "nan_rows": 5}
    assert [closing.figure for closing in valve.check()] == ["nan_rows"]
    probe.found = Fake().found
    assert valve.check() == []
    probe.found["tied_a"]["crest"] = 5.0
    assert [closing.site for closing in valve.check()] == ["tied_a"]
    assert model.tied_a.numerics == model.tied_b.numerics == "fp32"


def test_what_layers_see_is_watched_while_they_train() -> None:
    model = _installed()
    watcher = RecentRows(model, every=1, batches=2)
    valve = SafetyValve(model, watcher, every=4)
    closed = []
    for step in range(24):
        model(X if step < 16 else X + 30).sum().backward()
        watcher.step()
        closed += valve.step()
    assert [closing.site for closing in closed] == ["body", "middle"]  # rows that are nearly alike stay so
    assert closed[0].figure == "offset_gain"
    assert closed[0].step == 20
    watcher.close()
    assert not model.body._forward_pre_hooks


def test_recent_rows_are_what_they_say() -> None:
    model = _installed()
    watcher = RecentRows(model, every=2, batches=3)
    assert watcher.summary("body") == {}
    rows = []
    for step in range(8):
        x = torch.randn(50, 20, generator=torch.Generator().manual_seed(step)) * (1 + step) + 1
        x[3, 2] = math.nan if step == 6 else math.inf
        x[4] = 0
        model(x)
        if step % 2 == 0 and step > 0:
            rows.append(x[x.isfinite().all(1)])
        watcher.step()
    seen = torch.cat(rows).double()
    found = watcher.summary("body")
    amax = seen.abs().amax(1)
    assert (found["rows"], found["nan_rows"], found["infinite_rows"]) == (len(seen), 1, 2)
    mean_square_share = seen.mean(0).square().sum() / seen.square().sum(1).mean()
    assert found["mean_square_share"] == pytest.approx(float(mean_square_share))
    shares = seen[amax > 0] / amax[amax > 0, None]
    assert found["crest"] == pytest.approx(float(shares.square().mean() ** -0.5))
    assert found["amax_p50"] == pytest.approx(float(amax.quantile(0.5)))
    assert found["amax_p999"] == pytest.approx(float(amax.quantile(0.999)))
    offset = float(1 / (1 - mean_square_share).sqrt())
    assert figures(found)["offset_gain"] == pytest.approx(offset)
    model.eval()(X)
    assert watcher.summary("body") == found
    with pytest.raises(KeyError, match="site: 'tail' is not watched; there are body, middle, tied_a, head"):
        watcher.summary("tail")


def test_recent_rows_are_some_of_a_large_batch_and_what_is_not_finite_is_found_in_all() -> None:
    model = Net().train()
    watcher = RecentRows(model, every=1, batches=2, most_rows=100)
    x = X.repeat(8, 1)
    x[5, 3], x[-1, 0], x[-2] = math.nan, math.inf, -math.inf
    model(x)
    found = watcher.summary("body")
    assert found["nan_rows"] == 1
    assert found["infinite_rows"] == 2
    assert 97 <= found["rows"] <= 100
    with pytest.raises(ValueError, match="most_rows: expected 1 or more, found 0"):
        RecentRows(model, most_rows=0)


def test_a_report_is_enough() -> None:
    kept = {site.path: {"input": dict(CALM), "gradient": {}} for site in SITES}
    model = _installed()
    valve = SafetyValve(model, report(settings={"statistics": kept}), every=4)
    for _ in range(4):
        model(X + 30)
        valve.step()
    assert [c.site for c in valve.closed] == ["body", "middle"]
    valve.close()
    fresh = _installed()
    with pytest.raises(ValueError, match=r"the report has no statistics of middle, tied_a in settings\['statistics'\]"):
        SafetyValve(fresh, report(settings={"statistics": {"body": CALM}}))
    assert not fresh.body._forward_pre_hooks


def test_a_resumed_run_keeps_its_sites_closed() -> None:
    model, probe = _installed(), Fake()
    valve = SafetyValve(model, probe)
    probe.found["body"]["crest"] = 9.0
    valve.check()
    resumed = _installed()
    again = SafetyValve(resumed, probe)
    again.load_state_dict(valve.state_dict())
    assert again.closed == valve.closed == [Closing("body", 0, "crest", 3.0, 9.0)]
    assert resumed.body.numerics == "fp32"
    assert resumed.middle.numerics == "bf16"


def test_a_compiled_step_changes_over() -> None:
    torch._dynamo.reset()
    model, probe = _installed(), Fake()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    valve = SafetyValve(compiled, probe)
    y = compiled(X)
    assert torch.equal(y, model(X))
    probe.found["body"]["crest"] = 9.0
    valve.check()
    changed = compiled(X)
    assert torch.equal(changed, model(X))
    assert not torch.equal(changed, y)


def test_a_plan_in_fp32_leaves_nothing_to_close() -> None:
    model = _installed({(s.path, d): "fp32" for s in SITES[:3] for d in loka.DIRECTIONS})
    valve = SafetyValve(model, Fake(), every=1)
    assert valve.step() == []
    assert valve.closed == []


def test_a_pause_hides_calls_from_recent_rows() -> None:
    model = Net().train()
    rows = RecentRows(model, every=1)
    with rows.paused():
        with rows.paused():
            model(X)
        model(X)
    assert rows.summary("middle") == {}
    model(X)
    assert rows.summary("middle")["rows"] > 0


def test_bad_arguments() -> None:
    model = _installed()
    for limit in (1, 0.5, math.inf, math.nan, "2"):
        with pytest.raises(ValueError, match="limit: expected a factor above 1"):
            SafetyValve(model, Fake(), limit=limit)
    with pytest.raises(ValueError, match="every: expected 1 step or more"):
        SafetyValve(model, Fake(), every=0)
    served = loka.install(model, loka.solve(report_for(LOW), Requirement(max_signal_rel=0.05)), training=False)
    for unwatched in (Net(), served):
        with pytest.raises(ValueError, match="model: follows no plan in training"):
            SafetyValve(unwatched, Fake())
    with pytest.raises(TypeError, match="statistics: expected a Probe or a Report, found int"):
        SafetyValve(model, 3)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with (
        loka.Probe(other) as probe,
        pytest.raises(ValueError, match="statistics: are of the model .* of its own Probe"),
    ):
        SafetyValve(model, probe)
    with pytest.raises(ValueError, match="statistics: are of the model abc"):
        SafetyValve(model, replace(report(), model="abc"))
    with pytest.raises(ValueError, match=r"model: has no torch.nn.Linear"):
        RecentRows(torch.nn.ReLU())


def test_explain_shows_the_speeds_that_the_plan_went_by() -> None:
    forward = replace(finding("middle", "forward", "int8_dynamic", 15.0, rel_l1=0.01), pack_us=5.0)
    made = report(forward, finding("middle", "grad_input", "bf16", 10.0, rel_l1=0.01))
    plan = loka.solve(made, Requirement(max_rel_l1=0.05), training=True)
    row = next(row for row in explain_rows(plan, made) if row[:2] == ("middle", "forward"))
    assert row[4] == "1.50x"  # 30 us over 15 and 5 of packing
    assert row[5].startswith("1.50x")
    served = loka.solve(made, Requirement(max_rel_l1=0.05))
    assert next(row for row in explain_rows(served, made) if row[0] == "middle")[4] == "2.00x"


def test_explain_refuses_the_report_of_another_model() -> None:
    made = report(finding("middle", "forward", "bf16", 12.0, rel_l1=0.02))
    plan = loka.solve(made, Requirement(max_rel_l1=0.05))
    with pytest.raises(ValueError, match=r"report: is of another model \(abc\)"):
        explain_rows(plan, replace(made, model="abc"))


def test_explain_shows_errors_speed_and_reasons(capsys, monkeypatch) -> None:
    made = report(finding("middle", "forward", "bf16", 12.0, rel_l1=0.02, signal_rel=0.5),
                  finding("head", "forward", "bf16", 60.0, rel_l1=0.02))  # fmt: skip
    plan = loka.solve(made, Requirement(max_rel_l1=0.05))
    rows = explain_rows(plan, made)
    assert rows[1][:5] == (
        "middle",
        "forward",
        "bf16",
        "rel_l1 0.02 (0.018-0.022), signal_rel 0.5 (0.45-0.55)",
        "2.50x",
    )
    assert rows[1][5].startswith("2.50x; rel_l1 0.02 (to 0.022) <= 0.05")
    assert rows[3][2:5] == ("fp32", "", "")
    assert explain_rows(plan)[1][3:5] == ("rel_l1 0.02, signal_rel 0.5", "")
    loka.explain(plan, replace(made, settings={"unreached": ["spare.0"]}))
    out = capsys.readouterr().out
    assert "middle" in out
    assert "2.50x" in out
    assert "never called while it was probed, in FP32: spare.0" in out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    loka.explain(loka.install(Net(), plan, training=False), made)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert lines[2].startswith("middle  forward    bf16   rel_l1 0.02 (0.018-0.022)")
    with pytest.raises(ValueError, match="model: follows no plan"):
        loka.explain(Net())
    with pytest.raises(TypeError, match="model_or_plan: expected"):
        loka.explain({})
    other = Plan((PlanEntry("elsewhere", 1, 1, "", "bf16"),))
    assert explain_rows(other, made) == [("elsewhere", "forward", "bf16", "", "", "")]
