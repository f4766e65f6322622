"""ExFM: one huge teacher, many students, on a stream that drifts."""

from __future__ import annotations

from octavo.exfm.adapter import StudentAdapter
from octavo.exfm.das import DAS, Progress
from octavo.exfm.distillation import Adapter, Distillation
from octavo.exfm.distiller import Distiller, SoftLabels
from octavo.exfm.gradient import scale_gradient
from octavo.exfm.running import run
from octavo.exfm.student import Student
from octavo.exfm.teacher import RankerTeacher, Teacher, TeacherError

__all__ = [
    "DAS",
    "Adapter",
    "Distillation",
    "Distiller",
    "Progress",
    "RankerTeacher",
    "SoftLabels",
    "Student",
    "StudentAdapter",
    "Teacher",
    "TeacherError",
    "run",
    "scale_gradient",
]
