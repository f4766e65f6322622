"""What an embedding table is: its size, format and pooling."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.nn.dynamic import Dynamic
from octavo.ops import embedding
from octavo.ops._types import choice
from octavo.ops.table_formats import FORMATS, PLACES, best_place


@dataclass(frozen=True)
class Table:
    """One embedding table: ``rows`` x ``dim`` numbers in ``dtype`` (``fp32 | fp16 | bf16 | e4m3 | int8 | int4``).

    ``pooling``: ``sum | mean`` of a bag's rows. E4M3 has a scale per row, INT8 and INT4 (unsigned) a scale and a bias.
    ``scale``: where they lie: ``separate``, ``in_row`` behind the codes, ``power_of_two`` (E4M3: a byte each), or
    ``auto``: in the row where its codes fill less than a cache line, else separate.
    ``dynamic``: the table takes any 64-bit ids, of which ``rows`` at once have a row of their own (:class:`Dynamic`).
    """

    name: str
    rows: int
    dim: int
    dtype: str = "fp32"
    pooling: str = "sum"
    scale: str = "auto"
    dynamic: Dynamic | None = None

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise ValueError(f"name: found {self.name!r}; a table's name must not be empty nor hold a '.'")
        choice(f"dtype of table '{self.name}'", self.dtype, tuple(FORMATS))
        choice(f"scale of table '{self.name}'", self.scale, ("auto", *PLACES))
        if self.scale == "power_of_two" and self.dtype != "e4m3":
            raise ValueError(f"scale of table '{self.name}': power_of_two is for e4m3 rows, these are {self.dtype}")
        choice(f"pooling of table '{self.name}'", self.pooling, embedding.POOLING)
        if self.rows < 0 or self.dim < 1:
            raise ValueError(f"table '{self.name}': expected rows >= 0 and dim >= 1, found {self.rows} x {self.dim}")

    @property
    def place(self) -> str:
        """``scale``, ``auto`` resolved."""
        return best_place(self.dtype, self.dim) if self.scale == "auto" else self.scale

    @property
    def stored(self) -> int:
        """Rows in memory: a dynamic table has one more, row 0, for all ids that have none."""
        return self.rows + (self.dynamic is not None)
