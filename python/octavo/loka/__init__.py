"""LoKA: which layers of a model may run in low precision, proved on what they see, and the plan that follows.

Works on any ``torch.nn.Module``; needs nothing of octavo's but operators, dispatch and layers.
"""

from octavo.loka.explaining import explain
from octavo.loka.findings import DIRECTIONS, ERRORS, Estimate, Finding, Report, SiteInfo
from octavo.loka.identity import machine
from octavo.loka.installing import install, uninstall
from octavo.loka.solving import Verdict, solve, verdicts
from octavo.loka.valve import Closing, SafetyValve
from octavo.loka.watching import RecentRows, Watcher

__all__ = ["DIRECTIONS", "ERRORS", "Closing", "Estimate", "Finding", "RecentRows", "Report", "SafetyValve", "SiteInfo",
           "Verdict", "Watcher", "explain", "install", "machine", "solve", "uninstall", "verdicts"]  # fmt: skip
