"""Modules: linear layers in any numerics class, embedding bags, and the conversion of a model by a plan."""

from octavo.nn.conversion import convert
from octavo.nn.linear import Linear, LinearNorm

__all__ = ["Linear", "LinearNorm", "convert"]
