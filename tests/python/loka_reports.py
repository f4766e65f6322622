"""A model of linear layers of every kind, and reports about it with any figures one likes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from octavo import nn
from octavo.loka import DIRECTIONS, Estimate, Finding, Report, SiteInfo, machine
from octavo.loka.layers import fingerprint
from octavo.ops._types import NUMERICS

X = torch.randn(300, 20, generator=torch.Generator().manual_seed(9))


class Net(torch.nn.Module):
    """Fused and plain layers, octavo's and torch's, two of which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.LinearNorm(20, 48)
        self.middle = torch.nn.Linear(48, 32)
        self.tied_a = torch.nn.Linear(32, 32, bias=False)
        self.tied_b = torch.nn.Linear(32, 32, bias=False)
        self.tied_b.weight = self.tied_a.weight
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.middle(self.body(x)))
        return self.head(self.tied_b(self.tied_a(z))).squeeze(-1)


MODEL = fingerprint(Net())
SITES = (
    SiteInfo("body", 48, 20, 300, "bias+layer+hardswish", "float32"),
    SiteInfo("middle", 32, 48, 300, "bias", "float32"),
    SiteInfo("tied_a", 32, 32, 300, "", "float32"),
    SiteInfo("head", 1, 32, 300, "bias", "float32"),
)


def finding(
    site: str, direction: str, numerics: str, us: float | None = 10.0, concerns: tuple[str, ...] = (), **errors: float
) -> Finding:
    """Speedup 30 / us; errors with intervals of 10% to both sides."""
    estimates = {name: Estimate(value, 0.9 * value, 1.1 * value) for name, value in errors.items()}
    return Finding(site, direction, numerics, estimates, us, 30.0, 64, concerns)


def report(*findings: Finding, sites: tuple[SiteInfo, ...] = SITES, settings: Mapping[str, object] | None = None,
           where: str | None = None) -> Report:  # fmt: skip
    """About this machine, unless ``where``."""
    return Report(MODEL, where or machine(), 100, sites, findings, settings or {})


def report_for(choices: Mapping[tuple[str, str], str]) -> Report:
    """In which the class that ``choices`` names by (site, direction) is fast and good, and no other one is."""
    return report(*(
        finding(site.path, direction, numerics, 10.0 if choices.get((site.path, direction)) == numerics else 40.0,
                rel_l1=0.01, signal_rel=0.01)
        for site, direction, numerics in itertools.product(SITES, DIRECTIONS, NUMERICS)
        if numerics != "fp32"
    ))  # fmt: skip
