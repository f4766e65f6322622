"""What LoKA's speed benchmarks race: torch's rankers are octavo's, ids stacked for one bag are the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pydantic")
FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import loka_speed_models
    import loka_speed_torch

    return loka_speed_models, loka_speed_torch


@pytest.mark.parametrize("kind", ["wukong", "dcnv2", "dlrm", "mlp"])
def test_torchs_rankers_have_octavos_logits(modules: tuple[Any, Any], kind: str) -> None:
    ours, theirs = modules
    size = ours.SIZES["smoke"]
    events = ours.Events(size)
    model = ours.ranker(kind, events)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model.eval()
    towers = theirs.towers_of(kind, model, len(size.rows), size.dim)
    batch = events.batch(17, 0)
    whole = theirs.Whole(theirs.FloatRows(theirs.stacked_rows(model), len(size.rows)), towers).eval()
    with torch.no_grad():
        expected = model(batch)[ours.TASK]
        found = whole(batch.dense, *events.stacked(batch))
        traced = theirs.frozen_script(whole, (batch.dense, *events.stacked(batch)))
        other = events.batch(5, 1)  # of another size than it was traced with
        again, wanted = traced(other.dense, *events.stacked(other)), model(other)[ours.TASK]
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-5)


def test_byte_rows_are_the_rows_within_their_step(modules: tuple[Any, Any]) -> None:
    _, theirs = modules
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    values, offsets = torch.tensor([3, 4, 9, 0, 7, 7, 1, 2]), torch.tensor([0, 2, 3, 3, 8])
    exact = theirs.FloatRows(rows, 2)(values, offsets)
    coded = theirs.ByteRows(rows, 2)(values, offsets)
    assert exact.shape == coded.shape == (2, 16)
    assert (coded - exact).abs().max() < 5 * (rows.amax(1) - rows.amin(1)).max() / 255
    assert not torch.equal(coded, exact)


def test_a_plan_for_a_batch_is_solved_at_its_rows(modules: tuple[Any, Any]) -> None:
    ours, _ = modules
    study = ours.Study("wukong", ours.SIZES["smoke"])
    plan = study.plan(study.events.batch(24, 0))
    assert {entry.site for entry in plan} == set(study.probe.sites)
    assert {entry.direction for entry in plan} == {"forward"}
    with_gradients = study.training_plan()
    assert {entry.direction for entry in with_gradients} == {"forward", "grad_input", "grad_weight"}
    tables = study.model.embeddings
    copy = ours.twin(study.model)
    assert copy.embeddings is tables
    assert copy.top[0].weight is not study.model.top[0].weight
