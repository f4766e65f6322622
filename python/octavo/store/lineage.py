"""The snapshots of one teacher: which there are, what each had seen, and which one may speak at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from octavo._files import locked, read_signed, write_signed

FORMAT = 1


class LineageError(ValueError):
    """A snapshot that does not follow from those before it, or a file that is not a lineage."""


@dataclass(frozen=True)
class Version:
    """One snapshot of a teacher.

    ``number``: 1, 2, ... in the order of publication. ``path``: where its weights are, relative to the lineage.
    ``sha256``: of what was published, so that a weight that changed later is noticed. ``trained_until`` (ms): the event
    time of the last event it learned from; ``available_from`` (ms): it may speak of later events, and is not before
    that event. ``schema``: the fingerprint of the events it reads. ``tasks``, ``dim``: its logits, and its embedding's
    width. ``run``: whose it is, any text.
    """

    number: int
    path: str
    sha256: str
    trained_until: int
    available_from: int
    schema: str
    tasks: tuple[str, ...]
    dim: int | None = None
    run: str = ""


class Lineage:
    """The versions in ``path`` (a JSON file), oldest first; :meth:`publish` adds one.

    Readers see a whole file at any time and take up new versions with :meth:`reload`. Raises :class:`LineageError` for
    a file that is damaged or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.versions: tuple[Version, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the file again; none: no versions yet."""
        content = read_signed(self.path, FORMAT, LineageError) or {"versions": []}
        self.versions = tuple(Version(**{**entry, "tasks": tuple(entry["tasks"])}) for entry in content["versions"])

    def __len__(self) -> int:
        return len(self.versions)

    def __getitem__(self, number: int) -> Version:
        """The version of this number. Raises :class:`LineageError` for one that there is not."""
        if not 1 <= number <= len(self.versions):
            raise LineageError(f"{self.path}: has no version {number}; it holds {len(self.versions)}")
        return self.versions[number - 1]

    def publish(
        self, path: str, sha256: str, trained_until: int, available_from: int, schema: str, tasks: Sequence[str],
        dim: int | None = None, run: str = "",
    ) -> Version:  # fmt: skip
        """Add a version; the same ``sha256`` with the same times again is the version that is there.

        Of several publishers one after the other takes its turn. Raises :class:`LineageError` for a version that
        would speak before its last event, or that is older than the newest, and for another schema, tasks or width.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            self.reload()
            for known in self.versions:
                if (known.sha256, known.trained_until, known.available_from) == (sha256, trained_until, available_from):
                    return known
            made = Version(
                len(self.versions) + 1, path, sha256, trained_until, available_from, schema, tuple(tasks), dim, run
            )
            self._check(made)
            versions = (*self.versions, made)
            write_signed(self.path, FORMAT, {"versions": [asdict(version) for version in versions]})
            self.versions = versions
        return made

    def spoken_by(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For events at ``time`` [n] int64 ms: the newest version that was available before, 0 = none yet, and its age
        there, ms since its last event [n] int64. Events at the very time of a version's last one are not its to answer:
        it may have learned from them."""
        starts = np.asarray([version.available_from for version in self.versions], dtype=np.int64)
        number = np.searchsorted(starts, time.numpy(), side="left")
        until = np.asarray([0, *(version.trained_until for version in self.versions)], dtype=np.int64)
        age = np.where(number > 0, time.numpy() - until[number], 0)
        return torch.from_numpy(number.astype(np.int64)), torch.from_numpy(age.astype(np.int64))

    def _check(self, made: Version) -> None:
        if made.available_from < made.trained_until:
            raise LineageError(
                f"available_from: {made.available_from} ms is before the snapshot's last event "
                f"({made.trained_until} ms): it would know what it is asked about"
            )
        if not self.versions:
            return
        newest = self.versions[-1]
        if made.trained_until < newest.trained_until or made.available_from < newest.available_from:
            raise LineageError(
                f"trained_until, available_from: {made.trained_until}, {made.available_from} ms are before those of "
                f"version {newest.number} ({newest.trained_until}, {newest.available_from}): did another publisher "
                "overtake this one? train on and publish that"
            )
        for name in ("schema", "tasks", "dim"):
            was, now = getattr(newest, name), getattr(made, name)
            if was != now:
                raise LineageError(
                    f"{name}: version {newest.number} has {was!r}, this one {now!r}; start another lineage"
                )
