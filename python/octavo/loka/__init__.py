"""LoKA: which layers of a model may run in low precision, proved on what they see, and the plan that follows.

Works on any ``torch.nn.Module``; needs nothing of octavo's but operators, dispatch and layers.
"""

from octavo.loka import comm, mods
from octavo.loka.findings import DIRECTIONS, ERRORS, Estimate, Finding, Report, SiteInfo

__all__ = ["DIRECTIONS", "ERRORS", "Estimate", "Finding", "Report", "SiteInfo"]
__all__ += ["comm", "mods"]
