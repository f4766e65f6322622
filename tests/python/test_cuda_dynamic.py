"""Dynamic tables on a device against the same tables on the CPU: the same ids in the same rows, the same numbers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from test_nn_dynamic import bags_of, longs
from test_nn_dynamic_device import batch_of, expect_same, joined, module_of

from octavo import nn
from octavo.nn.dynamic import DynamicRows
from octavo.ops import Jagged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),  # a capture that is refused
]


def on_cpu(module: nn.EmbeddingBags) -> nn.EmbeddingBags:
    return copy.deepcopy(module).cpu()


@pytest.mark.parametrize("kind", [nn.EmbeddingBags, nn.EmbeddingCollection])
@pytest.mark.parametrize("ids_on", ["cpu", "cuda"])
def test_a_stream_of_batches_gives_what_the_cpu_gives(kind: type[nn.EmbeddingBags], ids_on: str) -> None:
    module = module_of(kind)
    there = copy.deepcopy(module).cuda()
    for step in range(30):
        for m, device in ((module, "cpu"), (there, ids_on)):
            m.train().now = 2 * step
            joined(m(batch_of(step).to(device))).square().sum().backward()
            if step % 7 == 6:
                m.dynamic["user"].evict(2 * step + 1)
        expected = joined(module.eval()(batch_of(step + 1)))
        found = joined(there.eval()(batch_of(step + 1).to("cuda")))
        assert found.is_cuda
        assert torch.allclose(found.cpu(), expected, 1e-5, 1e-6)
    for name, ids in module.dynamic.items():
        for key, column in ids.entries().items():
            assert torch.equal(column, there.dynamic[name].entries()[key]), (name, key)
    for key, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert torch.allclose(there.state_dict()[key].cpu(), value, 1e-5, 1e-6), key


def test_a_file_loads_on_either_device() -> None:
    there = module_of().cuda()
    for step in range(8):
        there.train()(batch_of(step).to("cuda")).sum().backward()
    expected = there.eval()(batch_of(3).to("cuda")).cpu()
    file = io.BytesIO()
    torch.save(there.state_dict(), file)
    for where in ("cpu", "cuda"):  # map_location moves the ids' columns too
        for module in (module_of(), module_of().cuda()):
            file.seek(0)
            module.load_state_dict(torch.load(file, weights_only=True, map_location=where))
            device = module.rows.get("fixed").device
            assert torch.allclose(module.eval()(batch_of(3).to(device)).cpu(), expected, 1e-5, 1e-6)
            expect_same(on_cpu(module), on_cpu(there))


def test_new_rows_are_drawn_by_id_and_start_with_no_state() -> None:
    module = nn.EmbeddingBags([nn.Table("a", 3, 8, "e4m3", dynamic=nn.Dynamic())], nn.Adam(0.1), seed=3)
    there = copy.deepcopy(module).cuda()
    for ids in ((1, 2, 3), (4, 5, 6)):  # the second three take the rows of the first
        assert torch.equal(there(bags_of(*ids).to("cuda")).cpu(), module(bags_of(*ids)))
        there(bags_of(*ids).to("cuda")).sum().backward()
        module(bags_of(*ids)).sum().backward()
    there.dynamic["a"].erase(longs(4))
    there(bags_of(7).to("cuda"))
    (row,) = there.dynamic["a"].find(longs(7)).tolist()
    assert there.state.get("a")[row].count_nonzero() == 0


def test_serving_waits_for_nothing_and_is_captured() -> None:
    module = nn.EmbeddingBags([nn.Table("a", 50, 8, dynamic=nn.Dynamic())], nn.SGD(0.1), bounds="ignore").cuda()
    module(bags_of(*range(30)).to("cuda")).sum().backward()
    module.eval()
    batch = Jagged(longs(1, 99, 2, 3), longs(0, 2, 4)).to("cuda")
    expected = module(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert module(batch).shape == expected.shape
        module.train()(bags_of(40)).sum().backward()  # ids on the CPU: the host waits for nothing here either
        module.eval()(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(batch)
    graph.replay()
    assert torch.equal(y, module(batch))
    module.dynamic["a"].erase(longs(2))
    module.refresh_ids()  # a replay reads the ids where they were
    graph.replay()
    assert torch.equal(y, module(batch))
    module.train()(bags_of(41))
    stream = torch.cuda.current_stream()
    try:
        with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            module.eval()(batch)
        with pytest.raises(RuntimeError, match="cannot repeat"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            module.train()(batch)
    finally:
        torch.cuda.set_stream(stream)


def test_ids_of_another_device_are_named() -> None:
    module = module_of()
    with pytest.raises(ValueError, match="values: is on cuda:0, the tables are on cpu"):
        module(batch_of(1).to("cuda"))
    with pytest.raises(TypeError, match="on the CPU, found .* on cuda:0"):
        DynamicRows(4, 4, nn.Dynamic()).find(longs(1).cuda())


def test_touched_rows_of_tables_on_a_device_are_marked() -> None:
    module = module_of().cuda()
    touched = module.track_touched()
    module(batch_of(1).to("cuda")).sum().backward()
    plain = module_of()
    expected = plain.track_touched()
    plain(batch_of(1)).sum().backward()
    assert all(torch.equal(touched[name], expected[name]) for name in expected)
