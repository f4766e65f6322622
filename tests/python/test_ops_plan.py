"""Plans: sites, measured errors, choice, files; conversion of models."""

import copy
import json
import math

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import kernels
from octavo.ops.dispatch import Plan, Requirement, plan, site_errors, sites, uniform_plan


@pytest.fixture(autouse=True)
def _no_measured_costs():
    _core.forget_costs()
    yield
    _core.forget_costs()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            nn.LinearNorm(20, 48),
            nn.LinearNorm(48, 32, "rms", "silu", bias=False),
            nn.LinearNorm(32, 32, "block", None),
        )
        self.tied_a = torch.nn.Linear(32, 32)
        self.tied_b = torch.nn.Linear(32, 32)
        self.tied_b.weight = self.tied_a.weight
        self.head = nn.Linear(32, 1)
        self.unused = torch.nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.head(self.tied_b(self.tied_a(self.body(x * scale)))).squeeze(-1)


X = torch.randn(300, 20, generator=torch.Generator().manual_seed(9))


def _prefer(numerics: str, sizes: list[tuple[int, int, str]]) -> None:
    """Make this class's kernels the fastest by recorded costs."""
    for n, k, epilogue in sizes:
        problem = ops.dispatch.Problem("linear", 300, n, k, epilogue=epilogue).core()
        for kernel in _core.kernels():
            if kernel.op == _core.Op.linear:
                _core.record_cost(kernel, problem, 1.0 if kernel.numerics.name == numerics else 5.0)
    kernels.new_generation()


def test_sites_are_what_ran_in_module_order_tied_weights_once() -> None:
    model = Net()
    found = sites(model, X)
    assert [s.path for s in found] == ["body.0", "body.1", "body.2", "tied_a", "head"]
    assert [s.epilogue for s in found] == ["bias+layer+hardswish", "rms+silu", "bias+block", "bias", "bias"]
    assert torch.equal(found[0].x, X)
    assert model.training
    assert [s.path for s in sites(torch.nn.DataParallel(model), X)] == [s.path for s in found]


def test_parametrized_weights_are_sites_of_their_own() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(20, 20))
                                  for _ in range(6)))  # fmt: skip
    found = sites(model, X)
    assert [s.path for s in found] == [str(i) for i in range(6)]
    assert all(torch.equal(s.weight, layer.weight) for s, layer in zip(found, model, strict=True))
    converted = nn.convert(model, uniform_plan(model, X, "bf16"))
    assert [type(layer) is nn.Linear and layer.numerics for layer in converted] == ["bf16"] * 6
    assert torch.nn.utils.parametrize.is_parametrized(model[0])
    assert ops.errors.relative_l1(converted(X), model(X)) < 0.02


class _Named(torch.nn.Linear):
    def reset_parameters(self) -> None:
        torch.nn.init.eye_(self.weight)
        torch.nn.init.zeros_(self.bias)


class _Own(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_subclasses_are_sites_unless_they_have_a_forward_of_their_own() -> None:
    model = torch.nn.Sequential(_Named(20, 20), _Own(20, 20))
    made = uniform_plan(model, X, "bf16")
    assert [entry.site for entry in made] == ["0"]
    converted = nn.convert(model, made)
    assert isinstance(converted[0], nn.Linear)
    assert isinstance(converted[0], _Named)
    assert type(converted[1]) is _Own
    assert torch.allclose(converted(X), model(X), atol=0.1)
    with pytest.raises(ValueError, match="0 is a _Own in the model, no linear layer or one with a forward of its own"):
        nn.convert(torch.nn.Sequential(model[1]), made)


def test_errors_are_those_of_the_site() -> None:
    site = sites(Net(), X)[0]
    ref = X.double() @ site.weight.double().T + site.bias.double()
    for numerics, low, high in (
        ("bf16", 45, 60), ("e4m3_weight_only", 30, 34), ("e4m3_row", 27, 31), ("int8_dynamic", 36, 45)
    ):  # fmt: skip
        errors = site_errors(site, numerics)
        y = ops.linear(X, ops.packing.pack_as(site.weight, numerics), site.bias.detach())
        assert errors["sqnr_db"] == pytest.approx(ops.errors.sqnr_db(y, ref))
        assert errors["post_norm"] == pytest.approx(ops.errors.post_norm_error(y, ref, site.norm))
        assert low < errors["sqnr_db"] < high
    fp32 = X @ site.weight.T + site.bias
    assert ops.errors.sqnr_db(fp32, ref) > 100


def test_the_requirement_decides_where_low_precision_is_faster() -> None:
    model = Net()
    _prefer("int8_dynamic", [(s.weight.shape[0], s.weight.shape[1], s.epilogue) for s in sites(model, X)])
    loose = plan(model, X, Requirement(min_sqnr_db=20), measure_costs=False)
    assert {e.numerics for e in loose} == {"int8_dynamic"}
    strict = plan(model, X, Requirement(min_sqnr_db=1000), measure_costs=False)
    assert {e.numerics for e in strict} == {"fp32"}
    split = sorted(e.measured["int8_dynamic"]["sqnr_db"] for e in loose)[2]
    mixed = plan(model, X, Requirement(min_sqnr_db=split), measure_costs=False)
    for entry in mixed:
        assert (entry.numerics == "int8_dynamic") == (entry.measured["int8_dynamic"]["sqnr_db"] >= split)


def test_measured_plan_meets_its_requirement() -> None:
    requirement = Requirement(min_sqnr_db=20)
    for entry in plan(Net(), X, requirement):
        assert entry.requirement == {"min_sqnr_db": 20}
        assert entry.numerics == "fp32" or entry.predicted_sqnr_db >= 20
        assert set(entry.kernels) == {"1", "16", "128", "1024", "8192"}
        for name in entry.kernels.values():
            assert kernels.by_name(name).numerics.name == entry.numerics


def test_every_bucket_of_a_plan_was_measured() -> None:
    made = plan(Net(), X, Requirement(min_sqnr_db=20))
    for entry in made:
        for bucket, name in entry.kernels.items():
            problem = ops.dispatch.Problem(
                "linear", int(bucket), entry.n, entry.k, epilogue=entry.epilogue, numerics=entry.numerics
            )
            decision = ops.dispatch.choose(problem)
            assert decision.kernel == name
            alone = not any(a.admitted for a in decision.alternatives)
            assert alone or "us measured)" in decision.reason or decision.predicted_us > 2000


def test_plan_files_round_trip(tmp_path) -> None:
    made = plan(Net(), X, Requirement(min_sqnr_db=20, max_signal_rel=0.5))
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["schema_version"] == 1
    assert content["entries"][0]["site"] == "body.0"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(KeyError, match="no site 'body.9'; it has body.0, body.1"):
        made["body.9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a plan of octavo"),
        ("[]", "not a plan of octavo"),
        ('{"findings": []}', "it has no schema_version and no entries"),
        ('{"schema_version": 9, "entries": []}', "schema version 9, this octavo reads 1"),
        ('{"schema_version": 1, "entries": [{"site": "a"}]}', "missing 4 required positional arguments"),
        (
            '{"schema_version": 1, "entries": [{"site": "a", "n": 1, "k": 1, "epilogue": "", "numerics": "int3"}]}',
            "numerics of a: found 'int3'",
        ),
    ],
)
def test_damaged_plan_files_say_so(tmp_path, text, message) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Plan.load(tmp_path / "plan.json")
    assert "plan.json" in str(error.value)


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"])
def test_converted_copy_runs_in_its_class_and_leaves_the_original_alone(numerics) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    expected = model(X)
    converted = nn.convert(model, uniform_plan(model, X, numerics))
    calls = ops.dispatch.counters()
    y = converted(X)
    ran = {name for name, n in ops.dispatch.counters().items() if n > calls.get(name, 0) and "linear" in name}
    assert {kernels.by_name(name).numerics.name for name in ran} == {numerics}
    assert not torch.equal(y, expected)
    assert ops.errors.sqnr_db(y, expected.detach()) > 15
    assert converted.tied_a.weight is converted.tied_b.weight
    assert isinstance(converted.tied_b, nn.Linear)
    assert converted.tied_b.numerics == numerics
    assert not any(p.requires_grad for p in converted.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(X), expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(converted.state_dict()[name], tensor)


def test_the_plans_preferred_kernels_run(tmp_path) -> None:
    model = Net()
    made = uniform_plan(model, X, "bf16")
    made.save(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    for name in {name for entry in made for name in entry.kernels.values()}:
        text = text.replace(name, "cpu.generic.linear.bf16")
    (tmp_path / "p.json").write_text(text)
    converted = nn.convert(model, Plan.load(tmp_path / "p.json"))
    before = ops.dispatch.counters()
    converted(X)
    ran = {name for name, n in ops.dispatch.counters().items() if n > before.get(name, 0)}
    assert ran == {"cpu.generic.linear.bf16"}
    assert torch.equal(copy.deepcopy(converted)(X), converted(X))
    kernels.by_name("cpu.generic.linear.bf16").quarantine("a test")
    try:
        kernels.new_generation()
        if any(k.name == "cpu.avx512.linear.bf16" and k.state == "qualified" for k in _core.kernels()):
            assert torch.allclose(converted(X), nn.convert(model, made)(X), atol=1e-3)  # another of the class serves
        else:  # no other gives FP32; a class is never changed unasked
            with pytest.raises(RuntimeError, match="no kernel may serve"):
                converted(X)
    finally:
        kernels.by_name("cpu.generic.linear.bf16").qualify()
        kernels.new_generation()


def test_a_class_without_a_kernel_is_left_out_of_the_plan() -> None:
    rows = [k for k in _core.kernels() if k.numerics.name == "int8_dynamic" and k.state == "qualified"]
    for kernel in rows:
        kernel.quarantine("a test")
    try:
        kernels.new_generation()
        made = plan(Net(), X, Requirement(min_sqnr_db=20))
        assert all("int8_dynamic" not in entry.measured for entry in made)
        assert all("e4m3_row" in entry.measured for entry in made)
    finally:
        for kernel in rows:
            kernel.qualify()
        kernels.new_generation()


def test_fp32_plan_changes_nothing() -> None:
    model = Net()
    assert torch.equal(nn.convert(model, uniform_plan(model, X, "fp32"))(X), model(X))


def test_conversion_errors_and_missing_kernels(tmp_path) -> None:
    model = Net()
    made = uniform_plan(model, X, "bf16")
    with pytest.raises(ValueError, match="the model has no module body.0"):
        nn.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)), made)
    other = Net()
    other.head = nn.Linear(32, 2)
    with pytest.raises(ValueError, match=r"head is \[1, 32\] in the plan but \[2, 32\] in the model"):
        nn.convert(other, made)
    with pytest.raises(TypeError, match="plan: expected an octavo.ops.dispatch.Plan"):
        nn.convert(model, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no torch.nn.Linear, octavo.nn.Linear or octavo.nn.LinearNorm ran"):
        plan(torch.nn.ReLU(), X, Requirement())
    with pytest.raises(TypeError, match="requirement: expected"):
        plan(model, X, 20.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="saw no rows"):
        plan(model, X[:0], Requirement())
    made.save(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text().replace(made["head"].kernels["1"], "cuda.sm120.linear.bf16")
    (tmp_path / "p.json").write_text(text)
    with pytest.warns(UserWarning, match="prefers cuda.sm120.linear.bf16, which this machine lacks"):
        converted = nn.convert(model, Plan.load(tmp_path / "p.json"))
    assert math.isfinite(float(converted(X).sum()))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_head_is_held_to_relative_l1_after_the_norm_as_solve_does(outputs) -> None:
    """Of one or two outputs a norm leaves nothing but signs, whatever the class does."""
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(64, outputs))
    x = torch.randn(300, 64)
    _prefer("e4m3_row", [(outputs, 64, "bias")])
    (entry,) = plan(head, x, Requirement(max_post_norm=0.5), measure_costs=False)
    assert entry.numerics == "e4m3_row"
    assert entry.measured["e4m3_row"]["post_norm"] == entry.measured["e4m3_row"]["rel_l1"] > 0
    (entry,) = plan(head, x, Requirement(max_post_norm=entry.measured["e4m3_row"]["rel_l1"] / 2), measure_costs=False)
    assert entry.numerics != "e4m3_row"
