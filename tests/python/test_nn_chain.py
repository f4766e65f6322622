"""Served Sequentials hand eight-bit codes on: the same bits, and the Sequential they were wherever codes may not go."""

import copy
import pickle

import pytest
import torch

from octavo import nn, ops
from octavo.nn.chain import Chain
from octavo.ops import dispatch


def _model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.LinearNorm(40, 64), nn.LinearNorm(64, 96, norm="rms"), nn.Linear(96, 33), nn.LinearNorm(33, 8)]
    return torch.nn.Sequential(*layers, torch.nn.Sigmoid()).eval()


def _served(numerics: str, x: torch.Tensor) -> torch.nn.Module:
    model = _model()
    return nn.convert(model, dispatch.uniform_plan(model, x, numerics))


def _one_by_one(served: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in served:
        x = layer(x)
    return x


@pytest.fixture
def handed_on(monkeypatch) -> list[str]:
    formats: list[str] = []
    for kind in (nn.Linear, nn.LinearNorm):
        codes = kind.codes
        monkeypatch.setattr(
            kind, "codes", lambda self, x, format, codes=codes: formats.append(format) or codes(self, x, format)
        )
    return formats


@pytest.mark.parametrize(
    ("numerics", "format"),
    [("int8_dynamic", "int8"), ("e4m3_row", "e4m3"), ("bf16", None), ("e4m3_weight_only", None), ("fp32", None)],
)
@pytest.mark.parametrize("rows", [1, 70])
def test_the_same_bits(numerics, format, rows, handed_on) -> None:
    x = torch.randn(rows, 40) * torch.logspace(-2, 2, rows)[:, None]
    served = _served(numerics, x)
    with torch.inference_mode():
        assert torch.equal(served(x), _one_by_one(served, x))
    assert handed_on == ([format] * 3 if format else [])


def test_where_codes_may_not_go(handed_on) -> None:
    x = torch.randn(9, 40)
    served = _served("int8_dynamic", x)
    assert type(served) is Chain
    y = served(x.requires_grad_())  # with gradients
    served(x.detach().bfloat16()).float()  # which would be rounded to BF16 in between
    seen = []
    handle = served[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        served(x)
    assert all(isinstance(output, torch.Tensor) for output in seen)
    assert handed_on == ["int8"]  # from the third layer to the fourth
    handle.remove()
    with torch.no_grad():
        part = served[:2](x)  # a slice ends in numbers
        assert isinstance(part, torch.Tensor)
        assert torch.equal(served(x), y.detach())


def test_copies_files_and_graphs(handed_on) -> None:
    x = torch.randn(9, 40)
    served = _served("int8_dynamic", x)
    with torch.no_grad():
        y = served(x)
        assert torch.equal(copy.deepcopy(served)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(served))(x), y)
        handed_on.clear()
        exported = torch.export.export(served, (x,)).module()
        assert torch.equal(exported(x), y)
    assert not handed_on


def test_the_model_itself_stays_as_it_is() -> None:
    model, x = _model(), torch.randn(4, 40)
    nn.convert(model, dispatch.uniform_plan(model, x, "int8_dynamic"))
    assert type(model) is torch.nn.Sequential


def test_codes_are_what_quantize_makes() -> None:
    x = torch.randn(9, 40)
    served = _served("int8_dynamic", x)
    with torch.no_grad():
        codes, expected = served[0].codes(x, "int8"), ops.quantize(served[0](x), "int8")
    assert torch.equal(codes.data, expected.data)
    assert torch.equal(codes.scale, expected.scale)
