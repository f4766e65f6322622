"""octavo's compiled engine, as the Python rooms see it. Addresses are ``tensor.data_ptr()``; strides count elements."""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, overload

import torch

class DType(IntEnum):
    f32 = ...
    bf16 = ...
    f16 = ...
    e4m3 = ...
    e5m2 = ...
    i8 = ...
    u8 = ...
    i32 = ...
    i64 = ...
    u4 = ...

class Op(IntEnum):
    linear = ...
    quantize = ...
    bag_forward = ...
    bag_backward = ...
    linear_epilogue_backward = ...
    linear_grad_input = ...
    linear_grad_weight = ...
    pairwise_dots = ...
    row_lookup = ...
    find_rows = ...
    add_norm = ...

class Device(IntEnum):
    cpu = ...
    cuda = ...

class Numerics(IntEnum):
    fp32 = ...
    bf16 = ...
    e4m3_row = ...
    e4m3_weight_only = ...
    int8_dynamic = ...
    e4m3_row_fast = ...
    e4m3_block = ...

def expect_memory(argument: str, data: int, elements: int) -> None: ...  # raises where 0 is no address

# --- isa.hpp, threading.hpp, memory.hpp ---
def isa() -> str: ...
def force_isa(name: str) -> None: ...
def cpu_features() -> dict[str, bool]: ...
def threads() -> int: ...
def set_threads(n: int) -> None: ...
def borrows_openmp() -> bool: ...
def advise_huge_pages(data: int, bytes: int) -> bool: ...

# --- registry.hpp ---
class Kernel:
    name: str
    library: str
    formats: str
    deterministic: bool
    op: Op
    device: Device
    numerics: Numerics
    product: DType
    norm_input: DType
    tolerance: float
    takes_codes: bool
    takes_batches: bool
    only_measured: bool
    note: str
    calls: int
    @property
    def state(self) -> str: ...
    @property
    def supported(self) -> bool: ...
    @property
    def needs(self) -> list[str]: ...
    def accepts(self, m: int, n: int, k: int) -> bool: ...
    def works_with(self, other: Kernel) -> bool: ...
    def count(self) -> None: ...
    def qualify(self) -> None: ...
    def quarantine(self, why: str) -> None: ...
    def forget(self) -> None: ...

def kernel(name: str) -> Kernel: ...
def kernels() -> list[Kernel]: ...
def register(
    name: str,
    op: Op,
    numerics: Numerics,
    library: str,
    device: Device,
    trusted: bool,
    deterministic: bool,
    product: DType,
    overhead_us: float,
    gmacs_per_s: float,
    gbytes_per_s: float,
    accepts: Callable[[int, int, int], bool] | None = None,
    tolerance: float = 1e-5,
    only_measured: bool = False,
) -> None: ...

# --- dispatch.hpp ---
class Problem:
    def __init__(
        self,
        op: Op,
        m: int,
        n: int,
        k: int,
        x_dtype: DType,
        out_dtype: DType,
        epilogue: str,
        device: Device,
        numerics: Numerics | None,
    ) -> None: ...

class ErrorEstimate:
    rel_l1: float
    mere: float
    signal_rel: float
    post_norm: float
    sqnr_db: float
    def __init__(self, rel_l1: float, mere: float, signal_rel: float, post_norm: float, sqnr_db: float) -> None: ...

class Requirement:
    def __init__(
        self,
        max_rel_l1: float | None,
        max_mere: float | None,
        max_signal_rel: float | None,
        max_post_norm: float | None,
        min_sqnr_db: float | None,
        deterministic: bool,
    ) -> None: ...

class Candidate:
    kernel: Kernel
    admitted: bool
    predicted_us: float
    source: str
    error: ErrorEstimate
    reason: str

class Decision:
    candidates: list[Candidate]
    reason: str

def choose(problem: Problem, requirement: Requirement, evidence: Mapping[Numerics, ErrorEstimate]) -> Decision: ...
def nominal_error(numerics: Numerics) -> ErrorEstimate: ...
def record_cost(kernel: Kernel, problem: Problem, us: float) -> None: ...
def forget_costs() -> None: ...
def cost_features(problem: Problem) -> list[float]: ...
def set_fitted_cost(kernel: Kernel, x_dtype: DType, out_dtype: DType, coefficients: Sequence[float]) -> None: ...
def forget_fitted_costs() -> None: ...
def m_bucket(m: int) -> int: ...

# --- quantize.hpp ---
class Scaling(IntEnum):
    tensor = ...
    row = ...
    block_1x128 = ...
    block_128x128 = ...
    mx = ...

def quantize(
    kernel: Kernel,
    x: int,
    rows: int,
    cols: int,
    stride: int,
    dtype: DType,
    format: DType,
    scaling: Scaling,
    pow2_scale: bool,
    codes: int,
    scale: int,
    stream: int,
) -> None: ...
def dequantize(
    codes: int,
    format: DType,
    scaling: Scaling,
    scale: int,
    out: int,
    rows: int,
    cols: int,
    stride: int,
    dtype: DType,
) -> None: ...

# --- linear.hpp ---
class NormKind(IntEnum):
    none = ...
    layer = ...
    rms = ...
    block = ...
    swish_rms = ...

class Activation(IntEnum):
    none = ...
    relu = ...
    silu = ...
    gelu = ...
    hardswish = ...
    sigmoid = ...

class PackedWeight:
    @property
    def n(self) -> int: ...
    @property
    def layout_bytes(self) -> int: ...
    def __init__(self, codes: int, scale: int, n: int, k: int, dtype: int, scaling: int = ...) -> None: ...

class Epilogue:
    def __init__(
        self,
        bias: int,
        norm: int,
        norm_weight: int,
        norm_bias: int,
        eps: float,
        norm_block: int,
        activation: int,
    ) -> None: ...

def use_torch(
    api: object,
    tensor: type[torch.Tensor],
    parameter: type[torch.Tensor],
    is_grad_enabled: Callable[[], bool],
    out_of_memory: type[BaseException],
    forward_ad: dict[str, Any],
) -> None: ...
def empty_output(shape: Sequence[int], is_bf16: bool = False) -> torch.Tensor: ...
def try_scratch(bytes: int) -> None: ...

class PreparedLinear:
    @property
    def weight(self) -> PackedWeight: ...
    @property
    def y_dtype(self) -> torch.dtype: ...
    def __call__(
        self, x: torch.Tensor, out: torch.Tensor | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def serve(
        self,
        x: torch.Tensor,
        master: torch.Tensor | None,
        bias: torch.Tensor | None,
        norm: object,
        activation: str | None,
        residual: torch.Tensor | None,
        out_dtype: torch.dtype | None,
        out: torch.Tensor | None,
        residual_before_norm: bool,
        /,
    ) -> Any: ...
    def record(self, x: torch.Tensor, residual: torch.Tensor | None, /) -> Any: ...

def prepare_linear(
    weight: PackedWeight,
    codes: torch.Tensor,
    epilogue: Epilogue,
    residual_before_norm: bool,
    vectors: tuple[torch.Tensor | None, ...],
    trainable: tuple[torch.Tensor, ...],
    norm: object,
    activation: str | None,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
    x_is_f32: bool,
    y_is_f32: bool,
    slow: Callable[..., torch.Tensor] | None,
) -> PreparedLinear: ...
def refresh_prepared(prepared: PreparedLinear, weight: PackedWeight) -> None: ...
def set_prepared_kernel(prepared: PreparedLinear, m: int, with_residual: bool, kernel: Kernel) -> None: ...
def prepared_kernels(prepared: PreparedLinear) -> dict[tuple[int, bool], str]: ...
def serve_group(
    layers: tuple[PreparedLinear | None, ...],
    xs: Sequence[torch.Tensor],
    outs: Sequence[torch.Tensor | None] | None = None,
) -> list[Any]: ...
def new_generation() -> int: ...
def linear(
    kernel: Kernel,
    x: int,
    m: int,
    x_stride: int,
    x_dtype: int,
    weight: PackedWeight,
    y: int,
    y_stride: int,
    y_dtype: int,
    epilogue: Epilogue,
    residual: int,
    residual_stride: int,
    residual_dtype: int,
    residual_before_norm: bool,
    stream: int = 0,
    x_scale: int = 0,
    y_scale: int = 0,
    saved: int = 0,
    residual_rows: int = 0,
    residual_count: int = 0,
) -> None: ...

# --- linear_backward.hpp ---
def linear_epilogue_backward(
    kernel: Kernel,
    z: int,
    grad: int,
    grad_stride: int,
    dtype: int,
    m: int,
    n: int,
    epilogue: Epilogue,
    grad_z: int,
    grad_z_dtype: int,
    grad_extra: int,
    grad_extra_dtype: int,
    grad_bias: int,
    grad_norm_weight: int,
    grad_norm_bias: int,
    stream: int,
) -> None: ...
def linear_grad_input(
    kernel: Kernel,
    grad: int,
    m: int,
    grad_stride: int,
    grad_dtype: int,
    weight: PackedWeight,
    grad_x: int,
    grad_x_dtype: int,
    stream: int = 0,
) -> None: ...
def linear_grad_weight(
    kernel: Kernel,
    grad: int,
    grad_stride: int,
    grad_dtype: int,
    x: int,
    x_stride: int,
    x_dtype: int,
    m: int,
    n: int,
    k: int,
    grad_weight: int,
    stream: int = 0,
) -> None: ...
def linear_gradients(
    input_kernel: Kernel,
    weight_kernel: Kernel,
    grad: int,
    m: int,
    grad_stride: int,
    grad_dtype: int,
    weight: PackedWeight,
    grad_x: int,
    grad_x_dtype: int,
    x: int,
    x_stride: int,
    x_dtype: int,
    grad_weight: int,
    stream: int = 0,
) -> None: ...

# --- embedding.hpp ---
class TableSet:
    # name, rows, num_rows, dim, row_stride, dtype, scale, mean, optimizer_state, scale_stride, exponents
    def __init__(self, tables: list[tuple[str, int, int, int, int, int, int, bool, int, int, int]]) -> None: ...
    def __len__(self) -> int: ...
    @property
    def dims(self) -> int: ...
    def serve_with(self, kernel: Kernel, generation: int, device_type: int, device_index: int) -> None: ...

class OptimizerConfig:
    def __init__(
        self,
        kind: int,
        lr: float,
        eps: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        stochastic: bool,
        seed: int,
        step: int,
        first_table: int,
    ) -> None: ...

def check_offsets(offsets: int, bags: int, num_values: int) -> None: ...
def bag_forward(
    kernel: Kernel,
    tables: TableSet,
    batch: int,
    values: int,
    num_values: int,
    offsets: int,
    weights: int,
    bounds: int,
    out: int,
    out_stride: int,
    out_dtype: int,
    stream: int,
) -> int: ...
def addresses(*tensors: dict[str, torch.Tensor | None]) -> bytes: ...
def serve_bags(
    tables: TableSet,
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None,
    bounds: int,
    is_bf16: bool,
    out: torch.Tensor | None,
    /,
) -> Any: ...
def serve_pairwise_dots(x: torch.Tensor, y: torch.Tensor | None, pairs: str, /) -> Any: ...
def serve_pairwise_dots_with(kernel: Kernel, generation: int, is_bf16: bool) -> None: ...
def serve_add_norm(
    parts: Sequence[torch.Tensor], residual: torch.Tensor | None, norm: Any, transposed: bool, /
) -> Any: ...
def serve_add_norm_with(kernel: Kernel, generation: int, norm: type) -> None: ...
def row_lookup(
    kernel: Kernel,
    tables: TableSet,
    batch: int,
    values: int,
    num_values: int,
    offsets: int,
    bounds: int,
    outs: list[tuple[int, int, int]],
    out_dtype: int,
    stream: int,
) -> int: ...
def bag_backward(
    kernel: Kernel,
    tables: TableSet,
    batch: int,
    values: int,
    num_values: int,
    offsets: int,
    weights: int,
    bounds: int,
    grad: int,
    grad_stride: int,
    grad_weights: int,
    optimizer: OptimizerConfig,
    stream: int,
) -> None: ...

# --- id_map.hpp ---
class IdMap:
    def __init__(self, max_rows: int, admit_after: int = 1, max_age: int = 0) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def removed(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def floor(self) -> int: ...
    def lookup(self, ids: int, n: int, rows: int) -> None: ...
    def lookup_or_insert(self, ids: int, n: int, now: int, rows: int) -> int: ...  # number of new rows
    def fresh(self, rows: int, ids: int) -> None: ...
    def erase(self, ids: int, n: int) -> int: ...
    def evict(self, now: int) -> int: ...
    def entries(self, start: int, stop: int, rows: int, ids: int, last_seen: int, scores: int) -> int: ...
    def restore(self, n: int, rows: int, ids: int, last_seen: int, scores: int, floor: int) -> None: ...
    def mark_saved(self) -> None: ...
    def freed(self) -> bytes: ...  # int64 rows
    def erased(self) -> bytes: ...  # int64 ids
    def sightings(self) -> bytes: ...
    @property
    def since_halving(self) -> int: ...
    def restore_sightings(self, counters: bytes, since_halving: int) -> bool: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def copy_is_old(self) -> bool: ...
    def mark_copied(self) -> None: ...
    def changed_slots(self) -> bytes | None: ...  # int64 places since mark_copied; None: all
    @overload
    def copy_slots(self, to: int) -> None: ...
    @overload
    def copy_slots(self, places: int, n: int, to: int) -> None: ...

def find_rows(
    kernel: Kernel,
    maps: list[tuple[int, int]],  # address, number of slots; (0, 0): the table's values are rows
    batch: int,
    values: int,
    num_values: int,
    offsets: int,
    rows: int,
    stream: int,
) -> None: ...
def draw_rows(ids: int, n: int, dim: int, seed: int, half_width: float, out: int) -> None: ...
def mark_rows(values: int, n: int, flags: int, rows: int) -> None: ...

# data, rows, cols, batch_stride, row_stride, col_stride, dtype
_Batch = tuple[int, int, int, int, int, int, int]

# --- pairwise.hpp ---
def pairwise_dots(
    kernel: Kernel,
    batch: int,
    x: _Batch,
    x_pairs: int,
    y: _Batch,
    pairs: int,
    out: int,
    out_batch_stride: int,
    out_row_stride: int,
    out_dtype: int,
    stream: int = 0,
) -> None: ...

# --- add_norm.hpp ---
def add_norm(
    kernel: Kernel,
    batch: int,
    parts: list[_Batch],
    residual: _Batch | None,
    norm: Epilogue,
    out: int,
    out_transposed: int,
    saved: int,
) -> None: ...
def add_norm_backward(
    kernel: Kernel,
    batch: int,
    grad: _Batch | None,
    grad_transposed: _Batch | None,
    z: int,
    norm: Epilogue,
    grad_z: int,
    grad_weight: int,
    grad_bias: int,
) -> None: ...

# --- cuda ---
built_with_cuda: bool

def cuda_problem() -> str: ...  # why CUDA kernels serve nothing here, or ""
def start_launches_early(allowed: bool) -> bool: ...  # what was set before
def cuda_info() -> dict[str, Any] | None: ...

# Only in builds with CUDA.
def finish_linear(
    z: int, m: int, n: int, epilogue: Epilogue, y: int, y_dtype: DType, y_scale: int, stream: int
) -> None: ...

# --- cuda/gemm/tile_choice.hpp ---
def gemm_tiles() -> list[dict[str, Any]]: ...
def rank_gemm_tiles(
    product: str,
    m: int,
    n: int,
    k: int,
    x_major: str = "k",
    w_major: str = "k",
    d_is_f32: bool = False,
    d_aligned: bool = True,
    norm: bool = False,
    residual: bool = False,
    norm_block: int = 0,
) -> list[tuple[str, float]]: ...
def keep_gemm_times(
    us: Mapping[str, float],
    product: str,
    m: int,
    n: int,
    k: int,
    d_is_f32: bool = False,
    d_aligned: bool = True,
    norm: bool = False,
) -> None: ...
def forget_gemm_times() -> None: ...

# Only in builds with CUDA.
def refused_by_cutlass(tile: str, m: int, n: int, k: int, norm_block: int = 0) -> str: ...
def run_gemm_tile(
    tile: str,
    m: int,
    n: int,
    k: int,
    x: int,
    w: int,
    x_scale: int,
    w_scale: int,
    d: int,
    d_is_f32: bool,
    stream: int,
) -> None: ...

# --- statistics.hpp ---
AMAX_BINS: int
SHARE_BINS: int

class MomentCount(IntEnum):
    rows = ...
    nan_rows = ...
    infinite_rows = ...

class TailCount(IntEnum):
    zero_rows = ...
    elements = ...
    zeros = ...
    negatives = ...
    underflow_e4m3_row = ...
    underflow_int8_row = ...
    underflow_e4m3_tensor = ...
    underflow_int8_tensor = ...
    beyond_last_amax = ...

class TailSum(IntEnum):
    mean = ...
    second = ...
    third = ...
    fourth = ...
    share_squares = ...
    amax = ...
    last_amax = ...

class Moments:
    def __init__(self, k: int, rank: int, counts: int, mean: int, scatter: int, diagonal: int) -> None: ...
    def merge(self, other: Moments) -> None: ...

class Tails:
    def __init__(self, counts: int, sums: int, row_amax: int, shares: int) -> None: ...
    def merge(self, other: Tails) -> None: ...

def observe(x: int, rows: int, cols: int, stride: int, dtype: int, moments: Moments, tails: Tails | None) -> None: ...
def sketch_signs(k: int, rank: int, out: int) -> None: ...
