"""Dispatch: the fastest kernel, of any library, that meets the accuracy requirement; and plans for whole models."""

from octavo.ops.dispatch.calibration import Fit, calibrate
from octavo.ops.dispatch.choice import choose, counters, explain
from octavo.ops.dispatch.measure import measure
from octavo.ops.dispatch.plan import plan, site_errors, sites, uniform_plan
from octavo.ops.dispatch.plan_file import Plan, PlanEntry
from octavo.ops.dispatch.problem import Alternative, Decision, Evidence, Problem, Requirement
from octavo.ops.dispatch.registration import register
from octavo.ops.dispatch.tuning import Tuned, tune
from octavo.ops.kernels import early_launches, force_isa
from octavo.ops.qualification import qualify

__all__ = [
    "Alternative",
    "Decision",
    "Evidence",
    "Fit",
    "Plan",
    "PlanEntry",
    "Problem",
    "Requirement",
    "Tuned",
    "calibrate",
    "choose",
    "counters",
    "early_launches",
    "explain",
    "force_isa",
    "measure",
    "plan",
    "qualify",
    "register",
    "site_errors",
    "sites",
    "tune",
    "uniform_plan",
]
