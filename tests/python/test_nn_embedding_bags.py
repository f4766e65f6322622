"""nn.EmbeddingBags: tables that train inside backward, state, copies in narrower formats, and its errors."""

import copy
from pathlib import Path

import pytest
import torch
from embedding_support import bags

from octavo import nn, ops
from octavo.ops import Jagged
from octavo.ops.reference import pooled_reference

TABLES = [nn.Table("user", rows=30, dim=8), nn.Table("item", rows=20, dim=12, pooling="mean")]


def _module(optimizer=None, **arguments) -> nn.EmbeddingBags:
    module = nn.EmbeddingBags(TABLES, optimizer, **arguments)
    module.reset_parameters(0.5, torch.Generator().manual_seed(1))
    return module


def _rows(module: nn.EmbeddingBags) -> list[torch.Tensor]:
    state = module.state_dict()
    return [state["rows.user"].clone(), state["rows.item"].clone()]


def test_forward_of_tensors_and_of_a_jagged() -> None:
    module = _module().eval()
    values, offsets, weights = bags(2, 9, 20, seed=2)
    ref = pooled_reference(_rows(module), ["sum", "mean"], values, offsets, weights)
    y = module(values, offsets, weights)
    assert y.shape == (9, 20)
    assert torch.allclose(y.double(), ref, atol=1e-5)
    assert torch.equal(module(Jagged(values, offsets, weights)), y)


@pytest.mark.parametrize("optimizer", [nn.Adam(0.05), nn.Adam(0.05, (0.5, 0.7), eps=1e-4), nn.Adagrad(0.1, eps=1e-2)])
def test_adam_and_adagrad_are_torchs_sparse_ones(optimizer) -> None:
    module = _module(optimizer)
    twins = [torch.nn.Parameter(r.double()) for r in _rows(module)]
    if isinstance(optimizer, nn.Adam):
        peer = torch.optim.SparseAdam(twins, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
    else:
        peer = torch.optim.Adagrad(twins, lr=optimizer.lr, eps=optimizer.eps)
    for step in range(12):  # few rows a step: most skip some
        values, offsets, _ = bags(2, 9, 20, seed=step, longest=2)
        target = torch.randn(9, 20, generator=torch.Generator().manual_seed(step))
        (module(values, offsets) - target).square().sum().backward()
        (pooled_with_gradients(twins, values, offsets) - target.double()).square().sum().backward()
        for twin in twins if isinstance(optimizer, nn.Adam) else ():  # of Adagrad, zero gradients change nothing
            assert twin.grad is not None
            twin.grad = twin.grad.to_sparse(1)
        peer.step()
        peer.zero_grad(set_to_none=True)
    for found, twin in zip(_rows(module), twins, strict=True):
        assert torch.allclose(found.double(), twin.detach(), atol=2e-5)
    state = module.state_dict()
    if isinstance(optimizer, nn.Adam):
        assert int(state["step"]) == 12
        for at, part in enumerate(("exp_avg", "exp_avg_sq")):
            for name, twin in zip(("user", "item"), twins, strict=True):
                assert torch.allclose(state[f"state.{name}"][:, at].double(), peer.state[twin][part], atol=2e-5)


def test_adam_that_is_not_lazy_is_torchs_dense_one_on_every_row() -> None:
    optimizer = nn.Adam(0.05, (0.5, 0.7), eps=1e-3, weight_decay=0.1, lazy=False)
    module = _module(optimizer)
    twins = [torch.nn.Parameter(r.double()) for r in _rows(module)]
    peer = torch.optim.Adam(twins, lr=0.05, betas=optimizer.betas, eps=optimizer.eps, weight_decay=0.1)
    module.track_touched()
    for step in range(12):
        values, offsets, weights = bags(2, 9, 20, seed=step, longest=2)
        weights = None if step % 2 else weights.requires_grad_()
        target = torch.randn(9, 20, generator=torch.Generator().manual_seed(step))
        (module(values, offsets, weights) - target).square().sum().backward()
        twin_weights = None if weights is None else weights.detach().double().requires_grad_()
        pooled = pooled_with_gradients(twins, values, offsets, twin_weights)
        (pooled - target.double()).square().sum().backward()
        if weights is not None:
            assert torch.allclose(weights.grad.double(), twin_weights.grad, atol=1e-4)
        peer.step()
        peer.zero_grad()
    for found, twin, touched in zip(_rows(module), twins, module._touched.values(), strict=True):
        assert torch.allclose(found.double(), twin.detach(), atol=2e-5)
        assert touched.all()  # a checkpoint of differences holds them


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "e4m3", "int8", "int4"])
def test_narrow_tables_learn_and_a_checkpoint_continues_as_if_nothing_happened(dtype) -> None:
    tables = [nn.Table(t.name, t.rows, t.dim, dtype, t.pooling) for t in TABLES]

    def train(module: nn.EmbeddingBags, steps: range) -> list[float]:
        losses = []
        for step in steps:
            values, offsets, _ = bags(2, 64, 20, seed=step)
            target = pooled_reference([goal["rows.user"], goal["rows.item"]], ["sum", "mean"], values, offsets)
            loss = (module(values, offsets) - target.float()).square().mean()
            loss.backward()
            losses.append(float(loss.detach()))
        return losses

    goal = {k: v.double() for k, v in _module().state_dict().items()}
    whole, first = (nn.EmbeddingBags(tables, nn.Adam(0.02), seed=3) for _ in range(2))
    whole.reset_parameters(0.5, torch.Generator().manual_seed(2))
    first.load_state_dict(whole.state_dict())
    losses = train(whole, range(150))
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    train(first, range(70))
    second = nn.EmbeddingBags(tables, nn.Adam(0.02), seed=3)
    second.load_state_dict(first.state_dict())
    train(second, range(70, 150))
    a, b = whole.state_dict(), second.state_dict()
    assert sorted(a) == sorted(b)
    assert all(torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)) for name in a)


def test_what_the_state_dict_holds() -> None:
    def names(optimizer, dtype="fp32", rounding="stochastic") -> dict[str, list[int]]:
        module = nn.EmbeddingBags([nn.Table("t", 5, 3, dtype)], optimizer, rounding=rounding)
        return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}

    assert names(None) == names(nn.SGD(0.1)) == {"rows.t": [5, 3]}
    assert names(nn.Adagrad(0.1)) == {"rows.t": [5, 3], "state.t": [5, 3]}
    assert names(nn.Adam(0.1)) == {"rows.t": [5, 3], "state.t": [5, 2, 3], "step": []}
    assert names(nn.SGD(0.1), "bf16") == {"rows.t": [5, 3], "step": []}
    assert names(nn.SGD(0.1), "bf16", "nearest") == {"rows.t": [5, 3]}
    assert names(nn.Adam(0.1), "int4") == {"rows.t": [5, 2], "scale.t": [5, 2], "state.t": [5, 2, 3], "step": []}
    with pytest.raises(ValueError, match="'t' has scales in powers of two and such tables do not train"):
        nn.EmbeddingBags([nn.Table("t", 5, 3, "e4m3", scale="power_of_two")], nn.SGD(0.1))
    assert names(None, "e4m3") == {"rows.t": [5, 3], "scale.t": [5]}
    wrong = nn.EmbeddingBags([nn.Table("t", 5, 3)], nn.RowWiseAdagrad(0.1)).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for state.t|Missing key.*step"):
        nn.EmbeddingBags([nn.Table("t", 5, 3)], nn.Adam(0.1)).load_state_dict(wrong)


@pytest.mark.parametrize("optimizer", [nn.SGD(0.1), nn.RowWiseAdagrad(0.1), nn.SGD(0.1, weight_decay=0.01)])
def test_training_is_torchs_on_dense_tables(optimizer) -> None:
    module = _module(optimizer)
    twins = [r.double().requires_grad_() for r in _rows(module)]
    sums = [torch.zeros(len(r), dtype=torch.float64) for r in twins]
    for step in range(4):
        values, offsets, _ = bags(2, 9, 20, seed=step)
        target = torch.randn(9, 20, generator=torch.Generator().manual_seed(step))
        y = module(values, offsets)
        assert y.requires_grad
        (y - target).square().sum().backward()
        loss = (pooled_with_gradients(twins, values, offsets) - target.double()).square().sum()
        for t, (twin, grad) in enumerate(zip(twins, torch.autograd.grad(loss, twins), strict=True)):
            own = offsets[t * 9 : (t + 1) * 9 + 1]
            touched = torch.zeros(len(twin), 1, dtype=torch.float64)
            touched.index_fill_(0, values[int(own[0]) : int(own[-1])], 1.0)
            with torch.no_grad():
                grad = (grad + optimizer.weight_decay * twin) * touched
                if isinstance(optimizer, nn.SGD):
                    twin -= optimizer.lr * grad
                else:
                    sums[t] += grad.square().mean(1)
                    twin -= optimizer.lr / (sums[t].sqrt() + optimizer.eps)[:, None] * grad
    for found, twin in zip(_rows(module), twins, strict=True):
        assert torch.allclose(found.double(), twin.detach(), atol=1e-5)
    if isinstance(optimizer, nn.RowWiseAdagrad):
        assert torch.allclose(module.state_dict()["state.user"].double(), sums[0], rtol=1e-5)
    assert list(module.parameters()) == []


def pooled_with_gradients(
    rows: list[torch.Tensor], values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    parts = []
    for t, (table, mode) in enumerate(zip(rows, ("sum", "mean"), strict=True)):
        own = offsets[t * 9 : (t + 1) * 9 + 1]
        here = slice(int(own[0]), int(own[-1]))
        looked_up = table[values[here]] if weights is None else table[values[here]] * weights[here, None]
        each = torch.arange(len(looked_up))
        parts.append(
            torch.nn.functional.embedding_bag(each, looked_up, own - own[0], mode=mode, include_last_offset=True)
        )
    return torch.cat(parts, 1)


def test_only_training_mode_with_gradients_updates() -> None:
    module = _module(nn.RowWiseAdagrad(0.1))
    before = _rows(module)
    values, offsets, weights = bags(2, 9, 20, seed=3)
    with torch.no_grad():
        assert not module(values, offsets).requires_grad
    module.eval()
    assert not module(values, offsets).requires_grad
    frozen = _module(None)
    assert not frozen(values, offsets).requires_grad
    weights.requires_grad_()
    frozen(values, offsets, weights).sum().backward()
    assert weights.grad is not None
    for module_ in (module, frozen):
        assert all(torch.equal(a, b) for a, b in zip(_rows(module_), before, strict=True))
    with pytest.raises(RuntimeError, match="the tables are frozen"):
        _ = frozen.lr


def test_learning_rate_schedules() -> None:
    module = _module(nn.SGD(0.1))
    values, offsets = torch.tensor([3, 4]), torch.tensor([0, 1, 2])
    before = _rows(module)[0][3].clone()
    module.lr = 0.25
    module(values, offsets).sum().backward()
    assert torch.allclose(_rows(module)[0][3], before - 0.25)
    assert module.optimizer == nn.SGD(0.25)


def test_gradients_of_weights_use_the_rows_before_the_update() -> None:
    module = _module(nn.SGD(0.5))
    values, offsets, weights = bags(2, 9, 20, seed=4)
    rows = _rows(module)
    weights.requires_grad_()
    module(values, offsets, weights).sum().backward()
    own = offsets[:10]
    expected = rows[0][values[: int(own[-1])]].sum(1)
    assert torch.allclose(weights.grad[: int(own[-1])], expected, atol=1e-5)
    assert not torch.equal(_rows(module)[0], rows[0])


def test_state_dict_and_copies() -> None:
    module = _module(nn.RowWiseAdagrad(0.1))
    values, offsets, _ = bags(2, 9, 20, seed=5)
    module(values, offsets).sum().backward()
    state = module.state_dict()
    assert sorted(state) == ["rows.item", "rows.user", "state.item", "state.user"]
    assert state["state.user"].max() > 0
    other = nn.EmbeddingBags(TABLES, nn.RowWiseAdagrad(0.1))
    other.load_state_dict(state)
    twin = copy.deepcopy(module)
    expected = module.eval()(values, offsets)
    assert torch.equal(other.eval()(values, offsets), expected)
    assert torch.equal(twin.eval()(values, offsets), expected)
    twin.train()(values, offsets).sum().backward()
    assert torch.equal(module(values, offsets), expected)
    assert not torch.equal(twin.eval()(values, offsets), expected)
    loaded = nn.EmbeddingBags(TABLES, nn.RowWiseAdagrad(0.1))
    loaded.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    assert torch.equal(loaded.eval()(values, offsets), expected)


@pytest.mark.parametrize(("dtype", "db"), [("bf16", 50.0), ("e4m3", 30.0), ("int8", 40.0)])
def test_copies_in_narrower_formats(dtype, db) -> None:
    module = _module(nn.SGD(0.1))
    before = _rows(module)
    values, offsets, _ = bags(2, 200, 20, seed=6)
    narrow = module.to_dtype(dtype)
    assert [t.dtype for t in narrow.tables] == [dtype] * 2
    assert narrow.optimizer is None
    assert not narrow.training
    y, ref = narrow(values, offsets), module.eval()(values, offsets)
    assert db - 4 < ops.errors.sqnr_db(y, ref) < db + 12
    assert all(torch.equal(a, b) for a, b in zip(_rows(module), before, strict=True))
    assert torch.equal(copy.deepcopy(narrow)(values, offsets), y)
    again = nn.EmbeddingBags([nn.Table(t.name, t.rows, t.dim, dtype, t.pooling) for t in TABLES])
    again.load_state_dict(narrow.state_dict())
    assert torch.equal(again(values, offsets), y)
    with pytest.raises(ValueError, match=f"table 'user' is {dtype}; convert the fp32 original instead"):
        narrow.to_dtype("fp32")


def test_initial_values_are_reproducible() -> None:
    a, b = _module(), _module()
    assert all(torch.equal(x, y) for x, y in zip(_rows(a), _rows(b), strict=True))
    assert _rows(a)[0].abs().max() <= 0.5
    a.reset_parameters()
    assert _rows(a)[0].abs().max() <= (1 / 30) ** 0.5


@pytest.mark.parametrize("kind", [nn.SGD, nn.Adagrad, nn.RowWiseAdagrad, nn.Adam])
def test_rates_are_finite_and_not_negative(kind) -> None:
    for name, value in (("lr", float("nan")), ("lr", -1.0), ("weight_decay", float("inf")), ("eps", -1.0)):
        if name == "eps" and kind is nn.SGD:
            continue
        with pytest.raises(ValueError, match=f"{name}: expected a finite number >= 0, found {value}"):
            kind(**({"lr": 0.1} | {name: value}))
    with pytest.raises(TypeError, match="lr: expected a number, found '0.1'"):
        kind("0.1")
    module = _module(kind(0.1))
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0, found nan"):
        module.lr = float("nan")


def test_bad_arguments_name_themselves() -> None:
    with pytest.raises(ValueError, match="tables: expected at least one"):
        nn.EmbeddingBags([])
    with pytest.raises(ValueError, match="names must differ, found a, a"):
        nn.EmbeddingBags([nn.Table("a", 1, 1), nn.Table("a", 1, 1)])
    with pytest.raises(ValueError, match="rounding: found 'up'"):
        nn.EmbeddingBags(TABLES, nn.SGD(0.1), rounding="up")
    with pytest.raises(ValueError, match=r"betas: found \(0.9, 1.0\), expected two numbers in \[0, 1\)"):
        nn.Adam(0.1, (0.9, 1.0))
    with pytest.raises(TypeError, match=r"expected nn.SGD, nn.Adagrad, .*found float"):
        nn.EmbeddingBags(TABLES, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype of table 'a': found 'fp64'"):
        nn.Table("a", 1, 1, "fp64")
    with pytest.raises(ValueError, match="expected rows >= 0 and dim >= 1, found 3 x 0"):
        nn.Table("a", 3, 0)
    with pytest.raises(ValueError, match="must not be empty nor hold a '.'"):
        nn.Table("a.b", 3, 1)
    module = _module(nn.SGD(0.1))
    before = _rows(module)
    with pytest.raises(TypeError, match="offsets: missing"):
        module(torch.tensor([1]))
    with pytest.raises(IndexError, match="item.*20"):
        module(torch.tensor([1, 20]), torch.tensor([0, 1, 2])).sum().backward()
    with pytest.raises(TypeError, match="a Jagged holds its own"):
        module(Jagged(torch.tensor([1, 2]), torch.tensor([0, 1, 2])), torch.tensor([0, 1, 2]))
    assert all(torch.equal(a, b) for a, b in zip(_rows(module), before, strict=True))


def test_large_tables_ask_for_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system grants no transparent huge pages")
    module = nn.EmbeddingBags([nn.Table("t", rows=1 << 17, dim=64)])  # 32 MiB
    middle = module.state_dict()["rows.t"].data_ptr() + (16 << 20)
    inside, flags = False, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= middle < high
        elif inside and first == "VmFlags:":
            flags = line.split()[1:]
    assert flags is not None
    assert "hg" in flags  # madvise(MADV_HUGEPAGE); whether pages are granted is up to the system
