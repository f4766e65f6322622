"""Modules: linear layers in any numerics class, embedding bags, and the conversion of a model by a plan."""

from octavo.nn.conversion import convert
from octavo.nn.dynamic import Dynamic
from octavo.nn.embedding_bags import EmbeddingBags
from octavo.nn.embedding_collection import EmbeddingCollection
from octavo.nn.linear import Linear, LinearNorm
from octavo.nn.norm import BlockNorm, Norm
from octavo.nn.table import Table
from octavo.nn.table_optimizers import SGD, Adagrad, Adam, RowWiseAdagrad

__all__ = ["SGD", "Adagrad", "Adam", "BlockNorm", "Dynamic", "EmbeddingBags", "EmbeddingCollection", "Linear",
           "LinearNorm", "Norm", "RowWiseAdagrad", "Table", "convert"]  # fmt: skip
