"""A plan for all three directions while a run trains: where it comes from, and the safety valve behind it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from octavo import loka
from octavo.config import TrainingConfig, ValveConfig
from octavo.loka.installing import runs_low
from octavo.ops.dispatch import Plan, Requirement
from octavo.training.distributed import Group

DRAWS = 32  # at most, of the evidence behind a plan that a run makes for itself


def from_probe(probe: loka.Probe, min_sqnr_db: float, group: Group) -> tuple[Plan, dict[str, Any]]:
    """What ``loka.solve`` makes of what every process's Probe saw, costs timed now by the first process; and by site
    what was seen of its input, which the valve compares with."""
    whole = probe if group.world == 1 else probe.merge_ranks()
    made = None
    if group.is_first:
        requirement = Requirement(min_sqnr_db=min_sqnr_db)
        with probe.paused():
            report = whole.evaluate(draws=DRAWS, requirement=requirement)
        seen = {site: parts["input"] for site, parts in report.settings["statistics"].items()}
        made = loka.solve(report, requirement, training=True), seen
    return group.share(made)  # type: ignore[no-any-return]


def in_force(plan: Plan, valve: Mapping[str, Any] | None) -> Plan:
    """``plan`` with the sites in FP32 that a valve of this state closed."""
    closed = {closing["site"] for closing in (valve or {}).get("closed", ())}
    entries = [replace(e, numerics="fp32", kernels={}) if e.site in closed else e for e in plan]
    return Plan(tuple(entries), plan.origin)


class Valve:
    """``loka.SafetyValve`` over what the first process's layers saw last; every process closes the same sites. State:
    plain values and, in ``recent``, tensors, so that a resumed run closes what an uninterrupted one does."""

    def __init__(
        self, model: torch.nn.Module, config: ValveConfig, group: Group, seen: Mapping[str, Any] | None = None
    ) -> None:
        """``model``: with the plan installed. ``seen``: by site, what the plan was made on; None: what comes first."""
        self._config, self._group = config, group
        self._rows = loka.RecentRows(model, max(1, config.every // 4), only=runs_low)
        self._valve = loka.SafetyValve(model, self._rows, config.limit, config.every)
        if seen is not None:
            state = self._valve.state_dict()
            before = {site: {k: float(v) for k, v in seen[site].items()} for site in state["before"]}
            self._valve.load_state_dict({**state, "before": before})
        if not group.is_first:
            self._rows.close()

    @property
    def closed(self) -> list[loka.Closing]:
        return self._valve.closed

    def step(self) -> None:
        """An update is over."""
        if self._group.is_first:
            self._rows.step()
            self._valve.step()
        else:
            self._valve.steps += 1
        if self._group.world > 1 and self._valve.steps % self._config.every == 0:
            self._valve.load_state_dict(self._group.share(self._valve.state_dict()))

    def paused(self) -> AbstractContextManager[None]:
        """Calls of the model inside are not watched."""
        return self._rows.paused()

    def close(self) -> None:
        """Stop watching; what closed stays closed."""
        self._rows.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self._valve.state_dict()

    def recent(self) -> dict[str, torch.Tensor]:
        """What was seen last, by name."""
        return self._rows.state_dict()

    def load(self, state: Mapping[str, Any], recent: Mapping[str, torch.Tensor]) -> None:
        """Go on from both."""
        self._valve.load_state_dict(state)
        self._rows.load_state_dict(recent)


def valve_of(
    model: torch.nn.Module, plan: Plan, chosen: TrainingConfig, group: Group, seen: Mapping[str, Any] | None = None
) -> Valve | None:
    """None where every layer stays in FP32: there is nothing to close."""
    if all(entry.numerics == "fp32" for entry in plan):
        return None
    return Valve(model, chosen.valve, group, seen)
