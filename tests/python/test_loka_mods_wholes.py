"""Sequentials are fused where they run as a whole, and nowhere else."""

import pytest
import torch
from mods_support import inputs, trained

from octavo import nn
from octavo.loka import mods


class _Base(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(13, 13), torch.nn.ReLU(), torch.nn.Linear(13, 1))

    def forward(self, x):
        return self.net(x)


class Indexed(_Base):
    def forward(self, x):
        z = self.net[0](x)
        return self.net[2](self.net[1](z)) + z.sum(1, keepdim=True)


class Sliced(_Base):
    def forward(self, x):
        seen = []
        for layer in self.net[:2]:
            x = layer(x)
            seen.append(x.sum(1, keepdim=True))
        return self.net[2](x) + seen[0]


class Tapped(_Base):
    def forward(self, x):
        return self.net(x) + self.net[0](x).sum(1, keepdim=True)


class Switched(_Base):
    whole = True

    def forward(self, x):
        return self.net(x) if self.whole else self.net[0](x)


class Beside(_Base):
    def embed(self, x):
        return self.net[:1](x)


class Through(torch.nn.Module):
    """Reaches through a module that runs it as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Base()

    def forward(self, x):
        return self.inner(x) + self.inner.net[0](x).sum(1, keepdim=True)


class Unseen(_Base):
    """Data decide, and what is called is not in the code."""

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        run = next(iter(self.children()))
        return run[1:](run[0](x)) + run[0](x).sum(1, keepdim=True)


class UntracedIndexed(_Base):
    def forward(self, x):
        z = self.net[0](-x if x.sum() > 0 else x)
        return self.net[2](self.net[1](z)) + z.sum(1, keepdim=True)


class Named(_Base):
    def forward(self, x):
        net = getattr(self, "net")  # noqa: B009
        z = net[0](-x if x.sum() > 0 else x)
        return net[2](net[1](z)) + z.sum(1, keepdim=True)


LEFT = [(Indexed, "Indexed reaches into the Sequential"), (Sliced, "Sliced reaches into"), (Tapped, "Tapped reaches"),
        (Switched, "Switched may reach into"), (Beside, "Beside may reach into"), (Through, "Through reaches into"),
        (Unseen, "nothing shows that the Sequential"), (UntracedIndexed, "UntracedIndexed may reach into"),
        (Named, "Named may reach into")]  # fmt: skip


@pytest.mark.parametrize(("kind", "why"), LEFT, ids=lambda value: getattr(value, "__name__", ""))
def test_a_sequential_whose_inside_may_be_seen_is_left_with_the_reason(kind, why) -> None:
    model, x = trained(kind()), inputs()
    changed = mods.apply(model, fuse=True)
    assert torch.equal(changed(x), model(x))
    (left,) = [change for change in mods.changes(changed) if change.site.endswith("net.0")]
    assert (left.mod, left.before, left.after) == ("fuse", "Linear -> relu", None)
    assert left.note.startswith(why)


class Untraced(_Base):
    def forward(self, x, scale=None):
        net = self.net(x if scale is None else x * scale)
        return net + 1


class Blocks(torch.nn.Module):
    """Sequentials in lists and in Sequentials, run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = torch.nn.ModuleList(_Base().net[:2] for _ in range(2))
        self.outer = torch.nn.Sequential(_Base().net[:2], _Base().net)

    def forward(self, x):
        for tower in self.towers:
            x = tower(x)
        return self.outer(x)


@pytest.mark.parametrize("kind", [_Base, Untraced, Blocks])
def test_a_sequential_that_runs_as_a_whole_is_fused(kind) -> None:
    model, x = trained(kind()), inputs()
    changed = mods.apply(model, fuse=True)
    fused = [module for module in changed.modules() if isinstance(module, nn.LinearNorm)]
    assert len(fused) == (4 if kind is Blocks else 1)
    assert torch.equal(changed(x), model(x))
    again = mods.apply(changed, fuse=True)
    assert torch.equal(again(x), model(x))
