"""ExFM: one huge teacher, many students, on a stream that drifts."""

from __future__ import annotations

from octavo.exfm.adapter import StudentAdapter
from octavo.exfm.distillation import Adapter, Distillation
from octavo.exfm.gradient import scale_gradient
from octavo.exfm.student import Student

__all__ = ["Adapter", "Distillation", "Student", "StudentAdapter", "scale_gradient"]
