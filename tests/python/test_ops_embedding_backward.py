"""ops.embedding.bag_backward against FP64: optimizers, row formats, rounding, partition over threads, every kernel."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from embedding_support import bags, decoded, table, table_set
from hypothesis import given, settings

from octavo import _core
from octavo.ops.checks import FP32_TOLERANCE, relative_to_largest
from octavo.ops.embedding import OPTIMIZERS, TableSet, bag_backward
from octavo.ops.embedding_checks import stepped
from octavo.ops.reference import coefficients
from octavo.ops.table_formats import encode_rows

# Largest distance of two codes over a row's largest magnitude.
STEPS = {"fp16": 2.0**-10, "bf16": 2.0**-7, "e4m3": 32 / 448, "int8": 2 / 255, "int4": 2 / 15}


def _kernels() -> list[_core.Kernel]:
    return [k for k in _core.kernels() if k.op == _core.Op.bag_backward and k.supported]


def _states(optimizer: str, rows: list[torch.Tensor], seed: int = 3) -> list[torch.Tensor] | None:
    """Of tables with the values ``rows``."""
    g, shape = torch.Generator().manual_seed(seed), OPTIMIZERS[optimizer].state
    return None if shape is None else [torch.rand(shape(*r.shape), generator=g) for r in rows]


@pytest.mark.parametrize("optimizer", ["sgd", "row_wise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dim", [1, 16, 17, 100, 128, 129, 300])
def test_every_optimizer_is_its_formula(isa, optimizer, decay, dim) -> None:
    values, offsets, weights = bags(2, 37, 20, seed=dim, longest=3)
    g = torch.Generator().manual_seed(5)
    rows = [torch.randn(20, d, generator=g) for d in (dim, 8)]
    states = _states(optimizer, rows)
    grad = torch.randn(37, dim + 8, generator=g)
    values[values == 7] = 8  # a row that nothing touches
    for kernel in _kernels():
        for w in (None, weights):
            new_rows = [r.clone() for r in rows]
            new_states = None if states is None else [s.clone() for s in states]
            tables = TableSet(new_rows, None, ["sum", "mean"], None, new_states)
            bag_backward(tables, values, offsets, w, grad, optimizer, 0.1, 1e-3, decay, kernel=kernel,
                         betas=(0.8, 0.95), step=4)  # fmt: skip
            expected = stepped(rows, states, ["sum", "mean"], values, offsets, w, grad, optimizer, 0.1, 1e-3, decay,
                               (0.8, 0.95), 4)  # fmt: skip
            for t in range(2):
                assert relative_to_largest(new_rows[t], expected[0][t]) <= FP32_TOLERANCE, kernel.name
                assert torch.equal(new_rows[t][7], rows[t][7])
                if states is not None and new_states is not None:
                    assert relative_to_largest(new_states[t], expected[1][t]) <= FP32_TOLERANCE, kernel.name
                    assert torch.equal(new_states[t][7], states[t][7])


@pytest.mark.parametrize("dtype", list(STEPS))
@pytest.mark.parametrize("optimizer", ["sgd", "row_wise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("dim", [1, 16, 33, 64, 130])
def test_narrow_rows_are_the_formula_rounded(isa, dtype, optimizer, dim) -> None:
    values, offsets, weights = bags(1, 41, 30, seed=dim)
    values[values == 7] = 8
    codes, scale, exact = table(30, dim, dtype, seed=dim)
    states = _states(optimizer, [exact])
    grad = torch.randn(41, dim, generator=torch.Generator().manual_seed(2))
    expected = stepped([exact], states, ["mean"], values, offsets, weights, grad, optimizer, 0.1, 1e-3, 0.01)[0][0]
    for kernel in _kernels():
        for rounding, steps in (("nearest", 0.5), ("stochastic", 1.0)):
            new, new_scale = codes.clone(), None if scale is None else scale.clone()
            new_states = None if states is None else [s.clone() for s in states]
            grad_weights = torch.zeros_like(weights)
            bag_backward(
                table_set([(new, new_scale)], [dim], dtype, "mean", states=new_states), values, offsets, weights, grad,
                optimizer, 0.1, 1e-3, 0.01, grad_weights=grad_weights, kernel=kernel, rounding=rounding, seed=9,
            )  # fmt: skip
            error = (decoded(new, new_scale, dtype, dim).double() - expected).abs()
            bound = (steps * STEPS[dtype] + FP32_TOLERANCE) * expected.abs().amax(1, keepdim=True) + 1e-6
            assert bool((error <= bound).all()), (kernel.name, rounding)
            assert torch.equal(new[7].view(torch.uint8), codes[7].view(torch.uint8))
            if scale is not None and new_scale is not None:
                assert torch.equal(new_scale[7], scale[7])
            span, bag, share = coefficients("mean", 0, 41, offsets, None)
            per_value = (grad.double()[bag] * exact[values[span]]).sum(1) * share
            assert relative_to_largest(grad_weights, per_value) <= FP32_TOLERANCE


def _one_step_of_each_row(kernel, codes, scale, dtype, target, seed, step=1) -> torch.Tensor:
    """Rows after an SGD step that leads from their values to `target` [D], every row looked up once."""
    count, dim = len(codes), len(target)
    new, new_scale = codes.clone(), None if scale is None else scale.clone()
    grad = decoded(codes, scale, dtype, dim) - target
    bag_backward(table_set([(new, new_scale)], [dim], dtype), torch.arange(count), torch.arange(count + 1), None, grad,
                 "sgd", 1.0, kernel=kernel, seed=seed, step=step)  # fmt: skip
    return decoded(new, new_scale, dtype, dim).double()


@pytest.mark.parametrize("dtype", list(STEPS))
def test_the_expectation_of_a_stochastically_rounded_row_is_its_value(isa, dtype) -> None:
    count, dim = 6000, 24
    g = torch.Generator().manual_seed(1)
    target = torch.randn(dim, generator=g) * torch.logspace(-3, 0, dim)  # E4M3 subnormals too
    target[0], target[1] = 3.0, 0.0
    codes, scale = encode_rows(torch.randn(dim, generator=g).expand(count, dim).contiguous(), dtype)
    for kernel in _kernels():
        rows = _one_step_of_each_row(kernel, codes, scale, dtype, target, seed=17)
        distance = rows.amax(0) - rows.amin(0)  # of the two codes around each value
        assert bool((distance <= STEPS[dtype] * 3.0 * 1.0001).all())
        spread = distance / 2 / count**0.5  # largest possible standard error: p = 1/2
        assert bool(((rows.mean(0) - target.double()).abs() <= 4.5 * spread + 3e-6).all()), kernel.name
        assert int((distance > 0).sum()) >= dim - 4  # it did round
        again = _one_step_of_each_row(kernel, codes, scale, dtype, target, seed=17)
        assert torch.equal(again, rows)
        for other in (dict(seed=18), dict(seed=17, step=2)):
            assert not torch.equal(_one_step_of_each_row(kernel, codes, scale, dtype, target, **other), rows)


@pytest.mark.parametrize("dtype", list(STEPS))
def test_small_updates_add_up(isa, dtype) -> None:
    rows, dim, steps = 16, 66, 400
    start = torch.full((rows, dim), 0.75)
    start[:, 0], start[:, 1] = 1.0, 0.0  # without gradient: they hold the scale
    offsets, values = torch.arange(rows + 1), torch.arange(rows)
    grad = torch.ones(rows, dim)
    grad[:, :2] = 0.0
    rate = 1e-4  # well below half a code of every format; 0.04 after all steps
    for rounding in ("nearest", "stochastic"):
        codes, scale = encode_rows(start, dtype)
        first = decoded(codes, scale, dtype, dim)[:, 2:].double()
        tables = table_set([(codes, scale)], [dim], dtype)
        for step in range(1, steps + 1):
            bag_backward(tables, values, offsets, None, grad, "sgd", rate, rounding=rounding, step=step)
        moved = first - decoded(codes, scale, dtype, dim)[:, 2:].double()
        if rounding == "nearest":
            assert bool((moved == 0).all())
            continue
        # A sum of `steps` roundings, each of variance at most rate * distance of two codes; rows * 64 samples.
        error = (steps * rate * STEPS[dtype] / (rows * (dim - 2))) ** 0.5
        assert abs(float(moved.mean()) - steps * rate) <= 4.5 * error


def _random_bits(seed: int, step: int, table: int, rows: int, columns: int) -> np.ndarray:
    """The definition in bag_random.hpp: [rows, columns] uint32."""
    golden = 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        return x ^ x >> 31

    def wrap(x: int) -> int:
        return x & (1 << 64) - 1

    stream = mix(wrap(mix(mix(wrap(seed + golden)) + step & (1 << 64) - 1) + golden * (table + 1)))
    words = [mix(wrap(stream + golden * (row + 1))) for row in range(rows)]
    low, high = (np.array([w >> shift & 0xFFFFFFFF for w in words], dtype=np.uint32)[:, None] for shift in (0, 32))
    x = np.arange(columns, dtype=np.uint32)[None] * np.uint32(0x9E3779B9) ^ low
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) + high
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)


def test_random_bits_are_a_function_of_seed_step_table_row_and_column(isa) -> None:
    count, dim, seed, step = 9, 37, (1 << 63) + 5, 12
    grad = torch.randn(count, 2 * dim, generator=torch.Generator().manual_seed(8))
    values = torch.arange(count).repeat(2)
    for kernel in _kernels():
        rows = [torch.zeros(count, dim, dtype=torch.bfloat16) for _ in range(2)]
        bag_backward(TableSet(rows), values, torch.arange(2 * count + 1), None, grad, "sgd", -1.0, kernel=kernel,
                     seed=seed, step=step)  # fmt: skip
        for t in range(2):
            bits = grad[:, t * dim : (t + 1) * dim].contiguous().numpy().view(np.uint32)
            expected = (bits + (_random_bits(seed, step, t, count, dim) & np.uint32(0xFFFF))) >> np.uint32(16)
            assert np.array_equal(rows[t].view(torch.int16).numpy().view(np.uint16), expected.astype(np.uint16))


def test_not_finite_gradients(isa) -> None:
    for kernel in _kernels():
        for rounding in ("nearest", "stochastic"):
            for dtype in ("fp32", *STEPS):
                codes, scale = encode_rows(torch.full((2, 20), 0.5), dtype)
                grad = torch.zeros(2, 20)
                grad[0, 3], grad[1, 4] = torch.nan, -torch.inf
                tables = table_set([(codes, scale)], [20], dtype)
                bag_backward(tables, torch.tensor([0, 1]), torch.tensor([0, 1, 2]), None, grad, "sgd", 1.0,
                             kernel=kernel, rounding=rounding)  # fmt: skip
                y = decoded(codes, scale, dtype, 20)
                affine = dtype in ("int8", "int4")
                assert bool(y[0].isnan().all() if affine else y[0, 3].isnan()), dtype
                if not affine:
                    assert torch.equal(y[0].nan_to_num(0.5), torch.full((20,), 0.5))
                rest = torch.cat([y[1, :4], y[1, 5:]])
                assert torch.allclose(rest, torch.full((19,), 0.5))
                assert float(y[1, 4]) == (torch.inf if dtype in ("fp32", "fp16", "bf16") else 0.5)


@pytest.mark.parametrize("dtype", ["fp32", *STEPS])
@pytest.mark.parametrize("sizes", [(5000,), (300, 40, 3000)])
def test_the_same_bits_for_any_number_of_threads(isa, dtype, sizes) -> None:
    batch, g = 500, torch.Generator().manual_seed(4)
    lengths = torch.randint(0, 25, (len(sizes) * batch,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    parts = []
    for t, size in enumerate(sizes):
        n = int(offsets[(t + 1) * batch] - offsets[t * batch])
        parts.append((torch.rand(n, generator=g) ** 3 * size).long())  # skewed
    values, grad = torch.cat(parts), torch.randn(batch, 20 * len(sizes), generator=g)
    made = [table(size, 20, dtype, seed=size) for size in sizes]
    weights = torch.randn(len(values), generator=g)

    def step(kernel: _core.Kernel, w: torch.Tensor | None) -> list[torch.Tensor]:
        rows = [m[0].clone() for m in made]
        scales = [None if m[1] is None else m[1].clone() for m in made]
        states = [torch.zeros(size, 2, 20) for size in sizes]
        tables = table_set(list(zip(rows, scales, strict=True)), [20] * len(sizes), dtype, "mean", states=states)
        grad_weights = None if w is None else torch.zeros_like(w)
        bag_backward(tables, values, offsets, w, grad, "adam", 0.1, kernel=kernel, grad_weights=grad_weights)
        kept = [*rows, *states, *(s for s in scales if s is not None), *([] if w is None else [grad_weights])]
        return [tensor.contiguous().view(torch.uint8) for tensor in kept]

    before = torch.get_num_threads()
    try:
        for kernel in _kernels():
            for w in (None, weights):
                torch.set_num_threads(1)
                first = step(kernel, w)
                for threads in (1, 2, 3, 7):
                    torch.set_num_threads(threads)
                    assert all(torch.equal(a, b) for a, b in zip(step(kernel, w), first, strict=True)), kernel.name
    finally:
        torch.set_num_threads(before)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_lookup_is_lost_or_counted_twice(data) -> None:
    """Sums of small integers are exact: each row moves by the number of its lookups, whatever the partition."""
    threads = data.draw(st.sampled_from([1, 2, 3, 7]), "threads")
    count, batch = data.draw(st.integers(1, 4), "tables"), data.draw(st.integers(1, 40), "batch")
    sizes = [data.draw(st.sampled_from([1, 2, 17, 300, 5000, 1 << 17])) for _ in range(count)]
    longest = data.draw(st.sampled_from([1, 3, 200]))
    g = np.random.default_rng(data.draw(st.integers(0, 1 << 30), "seed"))
    lengths = g.integers(0, longest + 1, count * batch)
    if data.draw(st.booleans(), "uneven"):
        lengths[batch:] //= 50
    offsets = np.concatenate([[0], lengths.cumsum()])
    spans = [slice(offsets[t * batch], offsets[(t + 1) * batch]) for t in range(count)]
    values = np.concatenate([(g.random(s.stop - s.start) ** data.draw(st.sampled_from([1, 6])) * size).astype(np.int64)
                             for s, size in zip(spans, sizes, strict=True)])  # fmt: skip
    outside = data.draw(st.booleans(), "some outside")
    if outside:
        values[g.random(len(values)) < 0.1] = g.choice([-1, 1 << 40])
    dim = data.draw(st.sampled_from([1, 5, 16]))
    bag = np.repeat(np.arange(count * batch) % batch, lengths)
    grad = g.integers(-3, 4, (batch, count * dim)).astype(np.float32)
    weights = g.integers(-2, 3, len(values)).astype(np.float32) if data.draw(st.booleans(), "weighted") else None
    rows = [torch.zeros(size, dim) for size in sizes]
    kernel = data.draw(st.sampled_from(_kernels()))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bag_backward(
            TableSet(rows), torch.from_numpy(values), torch.from_numpy(offsets),
            None if weights is None else torch.from_numpy(weights), torch.from_numpy(grad), "sgd", -1.0,
            bounds="ignore" if outside else "error", kernel=kernel,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for t, (span, size) in enumerate(zip(spans, sizes, strict=True)):
        expected = np.zeros((size, dim), dtype=np.float32)
        kept = (values[span] >= 0) & (values[span] < size)
        terms = grad[bag[span], t * dim : (t + 1) * dim] * (1.0 if weights is None else weights[span, None])
        np.add.at(expected, values[span][kept], terms[kept])
        assert np.array_equal(rows[t].numpy(), expected)


BAD = [
    (dict(optimizer="adamw"), ValueError, "optimizer: found 'adamw'"),
    (dict(rounding="up"), ValueError, "rounding: found 'up'"),
    (dict(optimizer="row_wise_adagrad"), ValueError, r"state of table '0': row_wise_adagrad needs .*\[5\], found none"),
    (dict(optimizer="adam", states=[torch.zeros(5)]), ValueError, r"adam needs float32 \[5, 2, 4\], found shape \[5\]"),
    (dict(optimizer="adagrad", states=[torch.zeros(5, 3)]), ValueError, r"adagrad needs float32 \[5, 4\], found"),
    (dict(optimizer="adam", states=[torch.zeros(5, 2, 4)], step=0), ValueError, "step: found 0; Adam counts"),
    (dict(optimizer="adam", states=[torch.zeros(5, 2, 4)], betas=(0.9, 1.0)), ValueError, "betas: found"),
    (dict(grad=torch.ones(2, 5)), ValueError, r"grad: shape \[2, 5\]; expected \[2, 4\]"),
    (dict(values=torch.tensor([0, 1, 5])), IndexError, r"table '0', bag 1: row index 5 at position 2"),
    (dict(offsets=torch.tensor([0, 3, 2])), ValueError, "offsets: must never decrease"),
    (dict(lr=float("nan")), ValueError, "lr: expected a finite number, found nan"),
    (dict(lr="a"), TypeError, "lr: expected a number, found 'a'"),
    (dict(eps=-1.0), ValueError, "eps: expected a finite number >= 0, found -1.0"),
    (dict(weight_decay=float("inf")), ValueError, "weight_decay: expected a finite number, found inf"),
    (dict(grad_weights=torch.zeros(2)), ValueError, r"grad_weights: expected one per value \(3\), found 2"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments_name_themselves_and_nothing_is_written(isa, change, error, message) -> None:
    for kernel in _kernels():
        rows, states = torch.ones(5, 4), [s.clone() for s in change.get("states", [])] or None
        given = dict(values=torch.tensor([0, 1, 2]), offsets=torch.tensor([0, 2, 3]), grad=torch.ones(2, 4),
                     optimizer="sgd", lr=0.1)  # fmt: skip
        given |= {k: v for k, v in change.items() if k != "states"}
        with pytest.raises(error, match=message):
            bag_backward(TableSet([rows], states=states), weights=None, kernel=kernel, **given)
        assert bool((rows == 1).all())
        assert states is None or all(torch.equal(a, b) for a, b in zip(states, change["states"], strict=True))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_row_trained_beyond_what_fp32_spans_stays_finite(isa, dtype) -> None:
    start = torch.zeros(1, 20)
    grad = torch.zeros(1, 20)
    grad[0, 3], grad[0, 5] = 3e38, -3e38
    for kernel in _kernels():
        codes, scale = encode_rows(start, dtype)
        bag_backward(table_set([(codes, scale)], [20], dtype), torch.tensor([0]), torch.tensor([0, 1]), None, grad,
                     "sgd", 1.0, kernel=kernel, rounding="nearest")  # fmt: skip
        y = decoded(codes, scale, dtype, 20)
        assert torch.allclose(y[0, [3, 5]], torch.tensor([-1.7e38, 1.7e38]), rtol=1e-5), kernel.name
        again, again_scale = encode_rows(-grad, dtype)
        assert torch.equal(codes, again)
        assert torch.equal(scale, again_scale)


def test_rows_and_scales_that_overlap_do_not_train() -> None:
    values, offsets, grad = torch.tensor([1, 2]), torch.tensor([0, 1, 2]), torch.ones(2, 4)
    shared = torch.zeros(1, 4).expand(5, 4)
    codes, scale = encode_rows(torch.zeros(5, 4), "int8")
    assert scale is not None
    for tables, part in (
        (TableSet([shared], states=[torch.zeros(5)]), "rows"),
        (TableSet([codes], [torch.zeros(1, 2).expand(5, 2)], states=[torch.zeros(5)]), "scales"),
    ):
        with pytest.raises(ValueError, match=f"table '0': its {part} overlap in memory, .*use .contiguous"):
            bag_backward(tables, values, offsets, None, grad, "row_wise_adagrad", 0.1)
        bag_backward(tables, values, offsets, None, grad, "none", 0.1)
    assert bool((shared == 0).all())
