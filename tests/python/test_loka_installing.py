"""loka.install: what runs where, that masters stay, that it can be undone; torch.compile and torch.export around it."""

import copy
import itertools
import logging

import pytest
import torch
from loka_reports import SITES, Net, X, report_for

from octavo import _core, loka, nn, ops
from octavo.loka import DIRECTIONS
from octavo.loka.installing import installed, is_installed
from octavo.loka.layers import fingerprint
from octavo.ops import qualification
from octavo.ops.dispatch import Plan, PlanEntry, Requirement

CHOICES = {
    ("body", "forward"): "int8_dynamic", ("body", "grad_input"): "bf16", ("body", "grad_weight"): "bf16",
    ("middle", "forward"): "bf16", ("middle", "grad_input"): "int8_dynamic", ("middle", "grad_weight"): "e4m3_row",
    ("tied_a", "grad_input"): "bf16", ("tied_a", "grad_weight"): "bf16",
    ("head", "forward"): "e4m3_row", ("head", "grad_weight"): "bf16",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    for name in ("linear", "linear_epilogue_backward", "linear_grad_input", "linear_grad_weight"):
        qualification.ensure(_core.Op[name])


def _plan(choices=CHOICES, training: bool = True) -> Plan:
    return loka.solve(report_for(choices), Requirement(max_signal_rel=0.05), training=training)


def _classes(model: Net) -> dict[tuple[str, str], str]:
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LinearNorm):
            found |= zip([(path, d) for d in DIRECTIONS], (module.numerics, *module.backward_numerics), strict=True)
    return found


def test_every_direction_is_routed_apart_in_place() -> None:
    model = Net()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    seen = []
    model.middle.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert loka.install(model, _plan()) is model
    assert dict(model.named_modules()) == modules
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.dtype == torch.float32
    assert type(model.middle) is nn.Linear
    everything = itertools.product(["body", "middle", "tied_a", "tied_b", "head"], DIRECTIONS)
    assert _classes(model) == {(s, d): CHOICES.get((s.replace("_b", "_a"), d), "fp32") for s, d in everything}
    before = ops.dispatch.counters()
    model(X).sum().backward()
    ran = {name for name, calls in ops.dispatch.counters().items() if calls > before.get(name, 0)}
    by_op = {op: {n.rsplit(".", 1)[1] for n in ran if f".{op}." in n}
             for op in ("linear", "linear_grad_input", "linear_grad_weight")}  # fmt: skip
    assert by_op["linear"] == {"int8_dynamic", "bf16", "e4m3_row"}
    assert by_op["linear_grad_input"] == {"int8_dynamic", "bf16"}
    assert by_op["linear_grad_weight"] == {"bf16", "e4m3_row"}
    assert seen == [(300, 32)]


def test_gradients_are_near_fp32_and_training_moves_the_masters() -> None:
    model, twin = Net(), Net()
    loka.install(model, _plan())
    target = X[:, :3].sum(1)
    for one in (model, twin):
        (one(X) - target).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert 0 < float((p.grad - q.grad).norm() / q.grad.norm()) < 0.2, name
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (model(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_uninstalling_gives_the_model_back() -> None:
    model, twin = Net(), Net()
    model.head.numerics = twin.head.numerics = "bf16"  # before any plan
    loka.install(model, _plan())
    assert not torch.equal(model(X), twin(X))
    assert loka.uninstall(model) is model
    assert type(model.middle) is torch.nn.Linear
    assert (model.head.numerics, model.head.backward_numerics) == ("bf16", "bf16")
    assert "_loka_before" not in vars(model.middle)
    assert torch.equal(model(X), twin(X))
    assert not installed(model)
    with pytest.raises(ValueError, match="model: has no plan installed for training"):
        loka.uninstall(model)


def test_a_second_plan_replaces_the_first() -> None:
    model = Net()
    loka.install(model, _plan())
    other = {("body", "forward"): "bf16"}
    loka.install(model, Plan(tuple(e for e in _plan(other) if e.site == "body")))
    assert list(installed(model)) == ["body"]
    assert type(model.middle) is torch.nn.Linear
    assert (model.body.numerics, model.body.backward_numerics) == ("bf16", ("fp32", "fp32"))
    loka.uninstall(model)
    assert (model.body.numerics, model.body.backward_numerics) == ("fp32", "bf16")


def test_a_plan_of_the_forward_alone_trains_with_exact_gradients() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(48, 32))
    entry = PlanEntry("0", 32, 48, "bias", "e4m3_row")
    loka.install(layer, Plan((entry,)))
    x = torch.randn(7, 48, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x).sum(), x)
    weight = ops.packing.pack_as(layer[0].weight.detach(), "e4m3_row").dequantize()
    assert torch.allclose(g, weight.sum(0).expand(7, 48), rtol=1e-5, atol=1e-6)


def test_for_inference_a_copy_follows_the_forward(isa) -> None:
    model = Net().eval()
    plan = _plan()
    served = loka.install(model, plan)
    assert served is not model
    assert type(model.middle) is torch.nn.Linear
    assert not is_installed(served)
    assert [served.body.numerics, served.middle.numerics, served.tied_b.numerics] == ["int8_dynamic", "bf16", "fp32"]
    assert torch.equal(served(X), nn.convert(model, plan)(X))
    assert not any(p.requires_grad for p in served.parameters())
    trained = loka.install(Net(), plan)
    again = loka.install(trained, plan, training=False)
    assert is_installed(trained)
    assert torch.equal(again(X), served(X))
    with torch.no_grad():
        assert torch.equal(trained(X), served(X))


@pytest.mark.parametrize("training", [True, False])
def test_models_that_do_not_fit_are_refused_untouched(training) -> None:
    class Own(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    def replaced(**layers: torch.nn.Module) -> Net:
        model = Net()
        for name, layer in layers.items():
            setattr(model, name, layer)
        return model

    def refused(model: torch.nn.Module, words: str, plan: Plan | None = None) -> None:
        before = [(path, type(module)) for path, module in model.named_modules()]
        with pytest.raises(ValueError, match=words):
            loka.install(model, plan or _plan(), training)
        assert [(path, type(module)) for path, module in model.named_modules()] == before
        assert not is_installed(model)

    refused(
        torch.nn.Sequential(torch.nn.Linear(3, 3)), r"no module body, head, middle, tied_a; its linear layers are 0"
    )
    refused(replaced(middle=torch.nn.Linear(48, 31)), r"middle is \[32, 48\] in the plan but \[31, 48\] in the model")
    refused(replaced(middle=torch.nn.Linear(48, 32, bias=False)), "epilogue 'bias' in the plan but 'none' in the model")
    refused(replaced(body=nn.LinearNorm(20, 48, "rms")), "'bias.layer.hardswish' in the plan but 'bias.rms.hardswish'")
    refused(replaced(head=Own(32, 1)), "head is a Own, whose forward is its own")
    refused(replaced(middle=torch.nn.ReLU()), "middle is a ReLU in the model, not a linear layer")
    refused(replaced(middle=torch.nn.Linear(48, 32).double()), "middle has a weight of torch.float64; plans are for")
    if training:
        refused(replaced(middle=torch.nn.Linear(48, 32).bfloat16()), "masters that are trained are FP32")
    twin = Net()
    twin.tied_b.__class__ = Own
    refused(twin, "tied_a shares its weight with a layer that is a Own")
    both = _plan()
    twice = Plan((*both.entries, PlanEntry("tied_b", 32, 32, "", "bf16")))
    refused(Net(), "tied_b and tied_a share a weight in the model but have an entry of forward each", twice)
    wrong = Plan((PlanEntry("head", 1, 32, "bias", "int8_dynamic", "grad_weight"),))
    refused(Net(), r"backward\[1\], of grad_weight: found 'int8_dynamic'", wrong)
    with pytest.raises(TypeError, match="plan: expected an octavo.ops.dispatch.Plan, found dict"):
        loka.install(Net(), {}, training)


class _Named(torch.nn.Linear):
    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def total(self) -> float:
        return self.weight.sum().item()


class _Own(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_a_subclass_without_a_forward_of_its_own_is_served() -> None:
    model = Net()
    model.middle = _Named(48, 32)
    with torch.no_grad():
        model.middle.weight.copy_(Net().middle.weight)
    loka.install(model, _plan())
    assert isinstance(model.middle, nn.Linear)
    assert isinstance(model.middle, _Named)
    assert model.middle.numerics == "bf16"
    assert model.middle.total() == model.middle.weight.sum().item()
    model(X).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X))
    served = loka.install(model, _plan(), training=False)
    with torch.no_grad():
        assert torch.equal(served(X), model(X))
    loka.uninstall(model)
    assert type(model.middle) is _Named


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["own", "weight_norm"])
def test_what_cannot_follow_a_plan_is_left_alone_where_it_stays_in_fp32(training, kind, caplog) -> None:
    def changed() -> Net:
        model = Net()
        if kind == "own":
            model.middle.__class__ = _Own
        else:
            torch.nn.utils.parametrizations.weight_norm(model.middle)
        return model

    why = "is a _Own, whose forward is its own" if kind == "own" else "is parametrized"
    plan = _plan({at: numerics for at, numerics in CHOICES.items() if at[0] != "middle"})
    model = changed()
    before = type(model.middle)
    with caplog.at_level(logging.WARNING, "octavo.loka"):
        done = loka.install(model, plan, training)
    assert f"install: middle stays as it is, in FP32 as planned: it {why}" in caplog.text
    assert type(done.middle) is before
    assert (done.body.numerics, "middle" in installed(done)) == ("int8_dynamic", False)
    assert torch.isfinite(done(X)).all()
    with pytest.raises(ValueError, match=f"plan: middle {why}"):
        loka.install(changed(), _plan(), training)


@pytest.mark.parametrize("training", [True, False])
def test_a_plan_for_another_model_is_refused_though_its_sites_are_there(training) -> None:
    model, plan = Net(), _plan()
    model.extra = torch.nn.Linear(3, 3)
    words = f"was made for the model {plan.origin['model']}, this one is {fingerprint(model)}.*says nothing of extra"
    with pytest.raises(ValueError, match=words):
        loka.install(model, plan, training)
    assert not is_installed(model)
    before = Plan(plan.entries, {**plan.origin, "model": fingerprint(Net(), epilogues=False)})
    loka.install(Net(), before, training)  # saved by an octavo that marked models by paths and shapes
    with pytest.raises(ValueError, match="was made for the model"):
        loka.install(model, before, training)


@pytest.mark.parametrize("training", [True, False])
def test_a_plan_of_another_machine_keeps_classes_and_says_so(training, caplog) -> None:
    plan = _plan()
    entries = tuple(
        PlanEntry(e.site, e.n, e.k, e.epilogue, e.numerics, e.direction,
                  {"8192": "cpu.other.linear.x"} if e.direction == "forward" else {})
        for e in plan
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "octavo.loka"):
        model = loka.install(Net(), Plan(entries, {"machine": "an Altair 8800"}), training)
    assert "the plan was made on an Altair 8800, this is" in caplog.text
    assert model.body.numerics == "int8_dynamic"
    assert model.body.preferred_kernels == {}
    assert torch.isfinite(model(X)).all()
    caplog.clear()
    loka.install(Net(), plan, training)
    assert not caplog.text


def test_a_missing_kernel_is_said(caplog) -> None:
    plan = Plan((PlanEntry("head", 1, 32, "bias", "bf16", "forward", {"8192": "cpu.other.linear.bf16"}),))
    with caplog.at_level(logging.WARNING, "octavo.loka"):
        model = loka.install(Net(), plan, training=True)
    assert "install: head prefers cpu.other.linear.bf16, which this machine lacks; using its class" in caplog.text
    assert torch.isfinite(model(X)).all()


def test_copies_and_state_dicts_go_on() -> None:
    model = loka.install(Net(), _plan())
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == list(Net().state_dict())
    assert torch.equal(twin(X), model(X))
    assert _classes(twin) == _classes(model)
    loka.uninstall(twin)
    assert type(twin.middle) is torch.nn.Linear
    assert type(model.middle) is nn.Linear


def test_a_model_that_is_one_layer_may_train() -> None:
    model = torch.nn.Linear(48, 32)
    loka.install(model, Plan((PlanEntry("", 32, 48, "bias", "bf16"),)))
    assert type(model) is nn.Linear
    assert model.numerics == "bf16"


def test_compiled_training_equals_eager_and_follows_a_new_plan() -> None:
    torch._dynamo.reset()
    model = loka.install(Net(), _plan())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    leaves = list(model.parameters())
    for plan in (None, _plan({("body", "forward"): "bf16", ("middle", "grad_weight"): "bf16"})):
        if plan is not None:
            loka.install(compiled, plan)  # below torch.compile's wrapper
            assert model.body.numerics == "bf16"
        eager = torch.autograd.grad(model(X).square().sum(), leaves)
        for a, b in zip(torch.autograd.grad(compiled(X).square().sum(), leaves), eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_export_holds_one_node_a_planned_layer() -> None:
    served = loka.install(Net().eval(), _plan())
    for model in (served, loka.install(Net(), _plan()).eval()):
        with torch.no_grad():
            program = torch.export.export(model, (X,))
            nodes = [
                str(n.target) for n in program.graph.nodes if n.op == "call_function" and "octavo" in str(n.target)
            ]
            assert sum(name == "octavo.linear.default" for name in nodes) == 3
            assert torch.equal(program.module()(X), served(X))


def test_ddp_prefixes_are_stripped() -> None:
    model = Net()
    loka.install(torch.nn.DataParallel(model), _plan())
    assert model.body.numerics == "int8_dynamic"
    assert len(SITES) == len(installed(model))
