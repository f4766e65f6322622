"""Operators on torch tensors: quantize, linear, embedding bags; dispatch between kernels; tensor errors."""

from octavo.ops import dispatch, errors
from octavo.ops.add_norm import add_norm
from octavo.ops.embedding import embedding_bags
from octavo.ops.embedding_rows import embedding_rows
from octavo.ops.epilogue import Norm
from octavo.ops.grouped import PreparedGroup, grouped_linear, prepare_grouped
from octavo.ops.jagged import Jagged
from octavo.ops.linear import linear
from octavo.ops.packing import PackedWeight, pack_weight, pack_weights
from octavo.ops.pairwise import pairwise_dots
from octavo.ops.prepared import PreparedLinear, prepare_linear
from octavo.ops.quantization import QuantizedTensor, dequantize, quantize
from octavo.ops.torch_kernels import register_torch_kernels

register_torch_kernels()

__all__ = [
    "Jagged",
    "Norm",
    "PackedWeight",
    "PreparedGroup",
    "PreparedLinear",
    "QuantizedTensor",
    "add_norm",
    "dequantize",
    "dispatch",
    "embedding_bags",
    "embedding_rows",
    "errors",
    "grouped_linear",
    "linear",
    "pack_weight",
    "pack_weights",
    "pairwise_dots",
    "prepare_grouped",
    "prepare_linear",
    "quantize",
]
