"""LoKA: which layers of a model may run in low precision, proved on what they see, and the plan that follows.

Works on any ``torch.nn.Module``; needs nothing of octavo's but operators, dispatch and layers.
"""

from octavo.loka import comm, mods
from octavo.loka.candidates import Candidate, Operands
from octavo.loka.explaining import explain
from octavo.loka.findings import DIRECTIONS, ERRORS, Estimate, Finding, Report, SiteInfo
from octavo.loka.identity import machine
from octavo.loka.installing import install, uninstall
from octavo.loka.probe import Probe
from octavo.loka.row_model import RowModel
from octavo.loka.solving import Verdict, solve, verdicts
from octavo.loka.statistics import Statistics
from octavo.loka.valve import Closing, SafetyValve
from octavo.loka.watching import RecentRows, Watcher
from octavo.loka.weight_model import WeightModel

__all__ = [
    "DIRECTIONS",
    "ERRORS",
    "Candidate",
    "Closing",
    "Estimate",
    "Finding",
    "Operands",
    "Probe",
    "RecentRows",
    "Report",
    "RowModel",
    "SafetyValve",
    "SiteInfo",
    "Statistics",
    "Verdict",
    "Watcher",
    "WeightModel",
    "comm",
    "explain",
    "install",
    "machine",
    "mods",
    "solve",
    "uninstall",
    "verdicts",
]
