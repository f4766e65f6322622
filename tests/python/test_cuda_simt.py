"""The SIMT kernels on a device, through octavo.ops, against those of the CPU (tests/cpp/cuda_emulator: on the CPU)."""

import copy
import warnings

import pytest
import torch
from embedding_support import FORMATS, bags, table, table_set

from octavo import _core, nn, ops
from octavo.ops import kernels, qualification
from octavo.ops.checks import same_bits
from octavo.ops.embedding import TableSet, bag_backward, bag_forward
from octavo.ops.embedding_rows import row_lookup
from octavo.ops.quantization import SCALINGS
from octavo.ops.reference import quantize_reference
from octavo.ops.table_formats import decode_rows

pytestmark = pytest.mark.gpu
NAMES = (
    "quantize_row", "quantize_block", "quantize_mx", "quantize_tensor", "linear_epilogue_backward", "bag_forward",
    "row_lookup", "bag_backward", "find_rows",
)  # fmt: skip
DIMS = [1, 3, 64, 130]


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    """Before any test: a verdict on a kernel is what one of them asserts, not a warning in whichever comes first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


@pytest.mark.parametrize("name", NAMES)
def test_qualification(name) -> None:
    kernel = kernels.by_name(f"cuda.sm80.{name}")
    assert qualification.check_of(kernel.op)(kernel) == ""


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (257, 1000), (4, 20000), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("scaling", ["tensor", "row", "block_1x128", "block_128x128", "mx"])
def test_quantize_is_the_definition(shape, dtype, format, scaling) -> None:
    if scaling == "mx" and format == "int8":
        pytest.skip("mx has no int8")
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for pow2 in (False,) if scaling == "mx" else (False, True):
        q = ops.quantize(x.cuda(), format, scaling, pow2)
        codes, scale = quantize_reference(x, format, scaling, pow2)
        assert bool(same_bits(q.data.cpu(), codes).all())
        assert torch.equal(q.scale.cpu().float(), scale.float())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_quantize_on_strides(scaling) -> None:
    strided = torch.randn(50, 200, device="cuda")[::2, 3:94]
    q, dense = ops.quantize(strided, scaling=scaling), ops.quantize(strided.contiguous(), scaling=scaling)
    assert torch.equal(q.data.view(torch.uint8), dense.data.view(torch.uint8))
    assert torch.equal(q.scale.view(torch.uint8), dense.scale.view(torch.uint8))


def test_a_tensor_beyond_two_to_the_31_elements_has_one_scale() -> None:
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of device memory")
    x = torch.zeros(1 << 16, (1 << 15) + 8, dtype=torch.bfloat16, device="cuda")
    x[-1, -1], x[0, 0] = -896.0, 448.0
    q = ops.quantize(x, scaling="tensor")
    assert (q.scale.item(), q.data[-1, -1].item(), q.data[0, 0].item()) == (2.0, -448.0, 224.0)
    assert int(torch.count_nonzero(q.data.view(torch.uint8))) == 2


def _there(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cuda()


def _twins(dtype: str, place: str, states: bool) -> tuple[TableSet, TableSet]:
    """The same tables on the CPU and on the device."""
    made = [table(37, dim, dtype, dim, place) for dim in DIMS]
    pooling = ["sum", "mean", "mean", "sum"]
    state = [torch.full((37,), 0.5) for _ in DIMS] if states else None
    on_cpu = table_set(made, DIMS, dtype, pooling, states=state)
    return on_cpu, TableSet(
        [_on_device(rows) for rows in on_cpu.rows],
        [_on_device(scale) for scale in on_cpu.scales],
        pooling,
        states=None if state is None else [s.cuda() for s in state],
        int4_dims=on_cpu.int4_dims,
    )


def _on_device(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A copy with the same strides, so that scales stay in the rows."""
    if tensor is None:
        return None
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    copy.view(torch.uint8).copy_(tensor.view(torch.uint8))
    return copy


@pytest.mark.parametrize(("dtype", "place"), FORMATS)
def test_bags_and_rows_are_those_of_the_cpu(dtype, place) -> None:
    values, offsets, weights = bags(4, 61, 37, 3, longest=40)
    on_cpu, there = _twins(dtype, place, states=False)
    for w in (None, weights):
        for out_dtype in (torch.float32, torch.bfloat16):
            y = bag_forward(there, values.cuda(), offsets.cuda(), _there(w), out_dtype=out_dtype)
            assert y.is_cuda
            assert torch.allclose(
                y.cpu().float(), bag_forward(on_cpu, values, offsets, w, out_dtype=out_dtype).float(), 1e-5, 1e-5
            )
    for found, expected in zip(
        row_lookup(there, values.cuda(), offsets.cuda()), row_lookup(on_cpu, values, offsets), strict=True
    ):
        assert torch.allclose(found.cpu(), expected, 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "e4m3", "int8", "int4"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_training_has_the_bits_of_the_cpu(dtype, rounding) -> None:
    values, offsets, weights = bags(4, 61, 37, 5, longest=9)
    on_cpu, there = _twins(dtype, "separate", states=True)
    grad = torch.randn(61, sum(DIMS), generator=torch.Generator().manual_seed(6))
    settings = {"lr": 0.1, "rounding": rounding, "seed": 9, "step": 4}
    bag_backward(on_cpu, values, offsets, weights, grad, "row_wise_adagrad", **settings,
                 kernel=kernels.by_name("cpu.generic.bag_backward"))  # fmt: skip
    bag_backward(there, values.cuda(), offsets.cuda(), weights.cuda(), grad.cuda(), "row_wise_adagrad", **settings)
    for a, b in zip([*on_cpu.rows, *on_cpu.states], [*there.rows, *there.states], strict=True):
        assert bool(same_bits(b.cpu(), a).all())


def test_a_row_of_very_many_lookups() -> None:
    count = 200_000
    rows, grad = torch.zeros(3, 128, device="cuda"), torch.randn(count, 128, device="cuda")
    values = torch.arange(count, device="cuda") % 3
    offsets = torch.arange(count + 1, device="cuda")
    expected = -torch.stack([grad[values == r].double().sum(0) for r in range(3)])
    found = []
    for _ in range(2):
        trained = rows.clone()
        bag_backward(TableSet([trained]), values, offsets, None, grad, "sgd", 1.0)
        found.append(trained)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0].double(), expected, atol=1e-3 * float(expected.abs().max()))


def test_wrong_indices_and_devices_are_named() -> None:
    rows = torch.randn(5, 8, device="cuda")
    one = torch.tensor([0, 1], device="cuda")
    with pytest.raises(IndexError, match="row index 7 at position 0 is outside"):
        ops.embedding_bags([rows], torch.tensor([7], device="cuda"), one)
    with pytest.raises(ValueError, match="offsets: must start at 0"):
        ops.embedding_bags([rows], torch.tensor([1], device="cuda"), torch.tensor([0, 3], device="cuda"))
    with pytest.raises(ValueError, match="values: is on cpu, the tables are on cuda:0"):
        ops.embedding_bags([rows], torch.tensor([1]), one)
    with pytest.raises(ValueError, match="table '1': is on cpu, the first table on cuda:0"):
        ops.embedding_bags([rows, rows.cpu()], torch.tensor([1], device="cuda"), torch.tensor([0, 1, 1], device="cuda"))
    with pytest.warns(UserWarning, match="skipped 1 of 1"):
        y = ops.embedding_bags([rows], torch.tensor([7], device="cuda"), one, bounds="warn")
    assert torch.equal(y.cpu(), torch.zeros(1, 8))


def test_graph_capture_and_streams() -> None:
    rows = torch.randn(50, 64, device="cuda")
    tables = TableSet([rows])
    values, offsets = torch.arange(20, device="cuda"), torch.arange(0, 21, 2, device="cuda")
    grad = torch.ones(10, 64, device="cuda")
    expected = bag_forward(tables, values, offsets, bounds="ignore")
    stepped = rows.clone()
    bag_backward(TableSet([stepped]), values, offsets, None, grad, "sgd", 0.5, bounds="ignore")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bag_forward(tables, values, offsets, bounds="ignore")
        bag_backward(tables, values, offsets, None, grad, "sgd", 0.5, bounds="ignore")
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    assert torch.equal(rows, stepped)
    assert torch.equal(decode_rows(rows.cpu(), None), stepped.cpu())
    with pytest.raises(NotImplementedError, match="use bounds='ignore'"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        bag_forward(tables, values, offsets)


@pytest.mark.parametrize("optimizer", [nn.RowWiseAdagrad(lr=0.1), nn.Adam(lr=0.1), nn.Adam(lr=0.1, lazy=False)])
def test_a_module_trains_as_on_the_cpu(optimizer) -> None:
    values, offsets, _ = bags(2, 30, 20, 8)
    made = [nn.Table("a", 20, 16, pooling="mean"), nn.Table("b", 20, 24)]
    on_cpu = nn.EmbeddingBags(made, optimizer, seed=3)
    there = copy.deepcopy(on_cpu).cuda()
    for _ in range(3):
        on_cpu(values, offsets).square().sum().backward()
        there(values.cuda(), offsets.cuda()).square().sum().backward()
    for name, tensor in on_cpu.state_dict().items():
        found = there.state_dict()[name].cpu()
        if tensor.dtype.is_floating_point:
            assert torch.allclose(found.float(), tensor.float(), 1e-5, 1e-6), name
        else:
            assert torch.equal(found, tensor), name


def test_the_rows_are_in_the_table() -> None:
    for name in NAMES:
        kernel = kernels.by_name(f"cuda.sm80.{name}")
        assert kernel.device == _core.Device.cuda
        assert kernel.state == "qualified", kernel.note
