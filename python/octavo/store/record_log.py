"""Records in numbered parts, each a parquet file that is whole or absent: what DAS writes and students read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from octavo._files import read_signed, space_expected, sync_directory, write_signed
from octavo.store.codec import Codec, codec
from octavo.store.record import Records

FORMAT = 1
_COLUMNS = ("key", "version", "written", "lag")


class StoreError(RuntimeError):
    """A record log that is missing, damaged or of another kind: says which file, and what to do."""


class RecordLog:
    """Records of one teacher in ``path``: part 0, 1, ... in any order of writing, each written once and whole.

    A part is put in place by one link(2): of several writers of a part the first wins, and a kill at any moment leaves
    it whole or absent. Reading checks the pages' checksums. Raises :class:`StoreError` that names the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = read_signed(self.path / "records.json", FORMAT, StoreError)
        if content is None:
            raise StoreError(f"{self.path}: is no record log; RecordLog.create makes one")
        self.tasks: tuple[str, ...] = tuple(content["tasks"])
        self.dim: int | None = content["dim"]
        self.codec: Codec = codec(content["codec"])

    @classmethod
    def create(
        cls, path: str | Path, tasks: Sequence[str], dim: int | None = None, codec_name: str = "fp32"
    ) -> RecordLog:
        """An empty log of records with logits of ``tasks`` and embeddings of ``dim`` numbers (None: none), or the one
        that is there. Raises :class:`StoreError` where that holds other records."""
        path = Path(path)
        codec(codec_name)
        if not (path / "records.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            content = {"tasks": list(tasks), "dim": dim, "codec": codec_name}
            write_signed(path / "records.json", FORMAT, content)
        found = cls(path)
        kind, wanted = (found.tasks, found.dim, found.codec.name), (tuple(tasks), dim, codec_name)
        if kind != wanted:
            raise StoreError(f"{path}: holds records of {kind} (tasks, width, codec), not {wanted}; take another path")
        return found

    def write(self, part: int, records: Records) -> bool:
        """Put ``records`` in place as this part. False, and nothing changes, when the part is there already.

        Raises ValueError for records of other tasks or another width, and
        :class:`octavo._files.NoSpaceError` for a full disk, which leaves no trace.
        """
        if set(records.tasks) != set(self.tasks) or records.dim != self.dim:
            raise ValueError(
                f"records: have tasks {list(records.tasks)} and embeddings of {records.dim}; "
                f"{self.path} holds {list(self.tasks)} and {self.dim}"
            )
        final = self._file(part)
        if final.exists():
            return False
        temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
        try:
            with space_expected(final):
                pq.write_table(
                    self._table(records), temporary, compression="zstd", write_page_checksum=True,
                    use_dictionary=["version"],  # nothing else repeats
                )  # fmt: skip
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self.path)
        return True

    def parts(self) -> list[int]:
        """The numbers of the parts that are there, ascending."""
        return sorted(int(file.stem.removeprefix("part-")) for file in self.path.glob("part-*.parquet"))

    def has(self, part: int) -> bool:
        """Whether this part is there."""
        return self._file(part).exists()

    def read(self, part: int) -> Records:
        """The records of a part, in the order they were written."""
        table = self._columns(part)
        embedding = None
        if self.dim is not None:
            embedding = self.codec.decode(_bytes(table["embedding"], self.codec.width(self.dim)), self.dim)
        return Records(
            embedding=embedding,
            logits={task: _tensor(table[f"logit.{task}"]) for task in self.tasks},
            **{name: _tensor(table[name]) for name in _COLUMNS},
        )

    def versions(self, part: int) -> torch.Tensor:
        """The versions [n] int64 of a part's records, 0 = nothing is known; nothing else of it is read."""
        return _tensor(self._columns(part, ["version"])["version"])

    def scan(self) -> Iterator[Records]:
        """Every part's records, by number."""
        for part in self.parts():
            yield self.read(part)

    def _columns(self, part: int, names: Sequence[str] | None = None) -> pa.Table:
        file = self._file(part)
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                return parquet.read(columns=names)
        except FileNotFoundError:
            raise StoreError(f"{file}: missing; the records of this part have not been written") from None
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{file}: damaged ({str(error).splitlines()[0]}); remove it and write it again") from None

    def _file(self, part: int) -> Path:
        if part < 0:
            raise ValueError(f"part: expected 0 or more, found {part}")
        return self.path / f"part-{part:08d}.parquet"

    def _table(self, records: Records) -> pa.Table:
        columns = {name: pa.array(getattr(records, name).numpy()) for name in _COLUMNS}
        columns |= {f"logit.{task}": pa.array(records.logits[task].numpy()) for task in self.tasks}
        if records.embedding is not None:
            codes = self.codec.encode(records.embedding).contiguous().numpy()
            kind = pa.binary(codes.shape[1])
            columns["embedding"] = pa.Array.from_buffers(kind, len(codes), [None, pa.py_buffer(codes)])
        return pa.table(columns)


def _tensor(column: pa.ChunkedArray) -> torch.Tensor:
    return torch.from_numpy(column.to_numpy().copy())


def _bytes(column: pa.ChunkedArray, width: int) -> torch.Tensor:
    """A column of fixed-size binaries as [n, width] uint8."""
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[chunk.offset * width :][: len(chunk) * width]
        for chunk in column.chunks
        if len(chunk)
    ]
    joined = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return torch.from_numpy(joined.copy()).view(-1, width)
