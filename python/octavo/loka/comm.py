"""Gradients of data parallel training sent in eight bits: a communication hook of ``DistributedDataParallel``.

``ddp.register_comm_hook(*loka.comm.compressed("e4m3"))``. Every rank cuts a bucket of n gradients into W chunks, sends
chunk r in eight bits to rank r, which averages what it gets in the order of ranks and sends the mean in eight bits to
all: 2 (W - 1) / W n (1 + 4 / block) bytes a rank, where an FP32 ring all-reduce sends 2 (W - 1) / W 4 n; the ratio is
25% + 1 / block at any W (25.8% at 128). What rounding lost is added to the next gradients (error feedback).
"""

# No postponed annotations: DDP compares the hook's with the types.

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from octavo import ops
from octavo.ops._types import FORMATS, choice

_FORMATS = ("e4m3", "int8")


@dataclasses.dataclass
class _Pending:
    """A bucket whose chunks are on their way."""

    bucket: torch.Tensor
    errors: list[torch.Tensor]
    result: Any
    work: Any
    sent: torch.Tensor
    received: torch.Tensor
    block: int
    error: torch.Tensor  # [W, chunk]: what this rank's rounding lost


@dataclasses.dataclass
class _Whole:
    """All gradients as one bucket, as DDP hands over its own."""

    gradients: torch.Tensor
    of: list[torch.Tensor]

    def buffer(self) -> torch.Tensor:
        return self.gradients

    def parameters(self) -> list[torch.Tensor]:
        return self.of

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


class Compressed:
    """State of the hook: format, what was sent, and each parameter's rounding error, FP32 as large as the parameter.

    ``bytes_sent``: by this rank so far, scales and headers included; ``fp32_bytes``: what a ring all-reduce of the same
    buckets in FP32 would have sent.
    """

    def __init__(self, format: str, block: int, group: Any) -> None:
        self.format, self.block, self.group = format, block, group
        self.bytes_sent, self.fp32_bytes = 0, 0.0
        self.errors: dict[torch.Tensor, torch.Tensor] = {}  # by parameter, of its shape
        self._known: dict[int, tuple[int, torch.dtype]] = {}
        self._pending: _Pending | None = None

    @property
    def ratio(self) -> float:
        """bytes_sent / fp32_bytes; nan before the first step."""
        return self.bytes_sent / self.fp32_bytes if self.fp32_bytes else float("nan")

    def add_up(self, parameters: Sequence[torch.Tensor]) -> None:
        """Without DDP: replace the gradients of ``parameters``, the same on all ranks, by their sum over the ranks; all
        of them are one bucket.
        """
        if not parameters or dist.get_world_size(self.group) == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if len(gradients) < len(parameters):
            raise ValueError("parameters: one has no gradient; pass those that have one, the same on every rank")
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.start(_Whole(flat, list(parameters))).wait()
        flat *= dist.get_world_size(self.group)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def state_dict(self, named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What this rank's rounding took and it still owes, FP32 by name (``model.named_parameters()``)."""
        return {name: self._error_of(parameter, parameter.device).clone() for name, parameter in named}

    def load_state_dict(self, named: Iterable[tuple[str, torch.Tensor]], state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`. Raises ValueError for the state of other parameters."""
        for name, parameter in named:
            if name not in state or state[name].shape != parameter.shape:
                found = list(state[name].shape) if name in state else "nothing"
                raise ValueError(f"state: {name} is {list(parameter.shape)} in the model, the state has {found}")
            self._error_of(parameter, parameter.device).copy_(state[name])

    def start(self, bucket: dist.GradBucket | _Whole) -> Any:
        """Send the bucket's chunks, and finish the one before: its chunks travelled while gradients were computed.
        Collectives start in the order of buckets, the same on all ranks.
        """
        gradients, index = bucket.buffer(), bucket.index()
        world = dist.get_world_size(self.group)
        cuda = gradients.is_cuda
        result: Any = torch.futures.Future(devices=[gradients.device]) if cuda else torch.futures.Future()
        if world == 1:
            result.set_result(gradients)
            return result
        if index == 0:
            self._pending = None  # of a backward that failed
        self._agree(index, gradients, world)
        before, self._pending = self._pending, self._send(gradients, bucket.parameters(), result, world)
        if before is not None:
            self._reduce(before, world)
        if bucket.is_last():
            last, self._pending = self._pending, None
            self._reduce(last, world)
        return result

    def _agree(self, index: int, gradients: torch.Tensor, world: int) -> None:
        """Raise on every rank when they differ in what they are about to send. Asked once per layout of a bucket."""
        own = (len(gradients), gradients.dtype)
        if self._known.get(index) == own:
            return
        names = ("format", "block", "bucket", "gradients", "bytes of a gradient")
        header = [_FORMATS.index(self.format), self.block, index, len(gradients), gradients.element_size()]
        mine = torch.tensor(header, device=gradients.device)
        all_of = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(all_of, mine, self.group)
        self.bytes_sent += (world - 1) * mine.nbytes
        first = all_of[0].tolist()
        for rank, other in enumerate(all_of):
            for name, here, there in zip(names, first, other.tolist(), strict=True):
                if here != there:
                    if name == "format":
                        here, there = _FORMATS[here], _FORMATS[there]
                    raise ValueError(
                        f"loka.comm: ranks disagree: {name} is {here} on rank 0 and {there} on rank {rank}; build the "
                        "same model and pass the same arguments to loka.comm.compressed on every rank"
                    )
        self._known[index] = own

    def _send(self, gradients: torch.Tensor, parameters: list[torch.Tensor], result: Any, world: int) -> _Pending:
        n = len(gradients)
        each = max(1, -(-n // world))
        block = min(self.block, each)
        chunk = -(-each // block) * block
        values = torch.zeros(world * chunk, device=gradients.device)
        values[:n] = gradients
        errors = [self._error_of(parameter, gradients.device) for parameter in parameters]
        start = 0
        for error in errors:
            values[start : start + error.numel()] += error.flatten()
            start += error.numel()
        codes, decoded = self._encode(values.view(-1, block))
        sent = codes.view(world, -1)
        received = torch.empty_like(sent)
        self.bytes_sent += (world - 1) * sent[0].nbytes
        self.fp32_bytes += 2 * (world - 1) / world * 4 * n
        work = dist.all_to_all_single(received, sent, group=self.group, async_op=True)
        lost = (values.view(-1, block) - decoded).nan_to_num_(0.0, 0.0, 0.0).view(world, chunk)
        return _Pending(gradients, errors, result, work, sent, received, block, lost)

    def _reduce(self, one: _Pending, world: int) -> None:
        one.work.wait()
        rank = dist.get_rank(self.group)
        parts = self._decode(one.received.view(-1, one.block + 4), one.block).view(world, -1)
        mean = parts[0].clone()
        for part in parts[1:]:
            mean += part
        mean /= world
        mine, decoded = self._encode(mean.view(-1, one.block))
        # The mean's own rounding, in the units of one rank's gradients: this rank sends it again next time.
        one.error[rank] += world * (mean - decoded.flatten()).nan_to_num_(0.0, 0.0, 0.0)
        start, flat = 0, one.error.flatten()
        for error in one.errors:
            error.copy_(flat[start : start + error.numel()].view_as(error))
            start += error.numel()
        everyones = torch.empty((world, *mine.shape), dtype=mine.dtype, device=mine.device)
        self.bytes_sent += (world - 1) * mine.nbytes
        work = dist.all_gather(list(everyones.unbind(0)), mine, self.group, async_op=True)

        def finish(done: Any) -> None:
            try:
                done.wait()
                means = self._decode(everyones.view(-1, one.block + 4), one.block).flatten()
                one.bucket.copy_(means[: len(one.bucket)])
                one.result.set_result(one.bucket)
            except Exception as error:
                one.result.set_exception(error)

        work.get_future().then(finish)

    def _error_of(self, parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
        error = self.errors.get(parameter)
        if error is None or error.shape != parameter.shape or error.device != device:
            error = self.errors[parameter] = torch.zeros(parameter.shape, device=device)
        return error

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``values`` [R, block] as [R, block + 4] uint8, codes and an FP32 scale a row; and the values these stand for.
        A row that holds NaN or infinity becomes NaN.
        """
        q = ops.quantize(values, self.format, "row")
        q.scale.masked_fill_((values * 0).sum(1) != 0, torch.nan)
        return torch.cat([q.data.view(torch.uint8), q.scale.view(-1, 1).view(torch.uint8)], 1), q.dequantize()

    def _decode(self, rows: torch.Tensor, block: int) -> torch.Tensor:
        data = rows[:, :block].contiguous().view(FORMATS[self.format])
        scale = rows[:, block:].contiguous().view(torch.float32).flatten()
        return ops.QuantizedTensor(data, scale, self.format, "row").dequantize()


def _hook(state: Compressed, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return state.start(bucket)  # type: ignore[no-any-return]


def compressed(format: str = "e4m3", block: int = 128, group: Any = None) -> tuple[Compressed, Any]:
    """(state, hook) for ``DistributedDataParallel.register_comm_hook(state, hook)``.

    Args:
        format: ``e4m3`` or ``int8`` codes, rounded to nearest with one FP32 scale per ``block`` gradients.
        block: gradients that share a scale; the ratio to FP32's bytes is 25% + 1 / block (50 and more: <= 27%).
        group: the process group of the DDP module; None: the default one.

    The mean is the same on all ranks bit for bit, and deterministic. A block that holds NaN or infinity on any rank
    arrives as NaN on all of them, its feedback starts from zero: a check for finite gradients skips the same step
    everywhere. Ranks whose format, block or buckets differ raise ValueError on every rank in the first backward.
    Buckets of fewer than W * block gradients send somewhat more than the ratio says.
    """
    choice("format", format, _FORMATS)
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"block: expected a positive number of gradients, found {block!r}")
    return Compressed(format, block, group), _hook
