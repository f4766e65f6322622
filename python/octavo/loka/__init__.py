"""LoKA: which layers of a model may run in low precision, proved on what they see, and the plan that follows.

Works on any ``torch.nn.Module``; needs nothing of octavo's but operators, dispatch and layers.
"""

from octavo.loka import comm, mods
from octavo.loka.candidates import Candidate, Operands
from octavo.loka.findings import DIRECTIONS, ERRORS, Estimate, Finding, Report, SiteInfo
from octavo.loka.probe import Probe
from octavo.loka.row_model import RowModel
from octavo.loka.statistics import Statistics
from octavo.loka.weight_model import WeightModel

__all__ = [
    "DIRECTIONS",
    "ERRORS",
    "Candidate",
    "Estimate",
    "Finding",
    "Operands",
    "Probe",
    "Report",
    "RowModel",
    "SiteInfo",
    "Statistics",
    "WeightModel",
    "comm",
    "mods",
]
