"""AdsWorld: the simulator's front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from octavo.config import build_section, config_hash
from octavo.data.adsworld.candidate_file import expect_free, noted
from octavo.data.adsworld.columns import candidate_schema, schema_of
from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.model import Model
from octavo.data.adsworld.observed import observed
from octavo.data.adsworld.presets import preset
from octavo.data.adsworld.simulation import Simulation, Tick
from octavo.data.adsworld.truth import Truth
from octavo.data.event_log import EventLog
from octavo.data.log_writer import local_path, regroup
from octavo.data.schema import Schema


class AdsWorld:
    """Days of ad traffic with known truth. Everything follows from (``config``, ``seed``).

    ``world``: a preset's name (:data:`octavo.data.PRESETS`), a configuration, or its plain values. The log's columns
    that start with ``_`` are truth, outside the schema; docs/adsworld.md has the equations.

    Raises :class:`octavo.config.ConfigError` for a configuration that cannot be used, naming the key.
    """

    def __init__(self, world: str | AdsWorldConfig | Mapping[str, Any] = "reference", seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, found {seed}")
        if isinstance(world, str):
            self.config = preset(world)
        elif isinstance(world, AdsWorldConfig):
            self.config = world
        else:
            self.config = build_section(AdsWorldConfig, world, "world")
        self.seed = seed
        self.schema: Schema = schema_of(self.config)
        self._model = Model(self.config, seed)
        self._intercepts = self._simulation().intercepts()
        self.truth = Truth(self._model.advertisers, self._intercepts)

    def tables(
        self,
        events: int | None = None,
        days: float | None = None,
        rows: int = 1 << 16,
        observed_until: int | None = None,
    ) -> Iterator[pa.Table]:
        """Impressions in event time, ``rows`` to a table (the last may be shorter), until ``events`` of them or
        ``days`` are over. The first n impressions are the same however many follow and whatever ``rows`` is.

        They hold every outcome with its delay, as a collector that listened until the last window closed has it.
        ``observed_until`` (ms since 1970) hides what was not known then: outcomes still open are null.
        """
        ticks = self._ticks(self._simulation(), events, days)
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, found {rows}")
        return (table.combine_chunks() for table in regroup(self._observed(ticks, observed_until), rows))

    def candidates(self, events: int | None = None, days: float | None = None) -> Iterator[pa.Table]:
        """The candidate sets of the requests of :meth:`tables`, one row each: the shown have a ``position``, the others
        null. A request's set is whole, even where ``events`` ends between its impressions."""
        simulation = self._simulation()
        return (simulation.candidates(tick) for tick in self._ticks(simulation, events, days) if len(tick.table))

    def write(
        self,
        path: str | Path,
        events: int | None = None,
        days: float | None = None,
        candidates: str | Path | None = None,
        observed_until: int | Literal["end"] | None = None,
    ) -> EventLog:
        """Write an :class:`EventLog` at ``path`` and, in the same pass, the candidate sets as one parquet file.

        The sets are in place before the log is: a log that is there has them, and a retry after a kill may find its own
        sets. ``observed_until="end"`` (with ``days``): what was known when the log ended. Raises :class:`DataError` for
        other paths that exist and for URIs, and :class:`OSError` naming ``candidates`` when the disk takes no more.
        """
        if observed_until == "end":
            if days is None:
                raise ValueError('observed_until="end" needs days; with events, give a time in ms')
            observed_until = self.time(days)
        if candidates is None:
            tables = self.tables(events, days, observed_until=observed_until)
            return EventLog.write(path, self.schema, tables, observed_until=observed_until)
        target = local_path(candidates)
        origin = f"{config_hash(self.config)} seed={self.seed} events={events} days={days}"
        expect_free(target, origin)
        simulation = self._simulation()
        played = self._ticks(simulation, events, days)
        with closing(noted(played, simulation, target, candidate_schema(self.config), origin)) as ticks:
            tables = self._observed(ticks, observed_until)
            return EventLog.write(path, self.schema, tables, observed_until=observed_until)

    def time(self, day: float) -> int:
        """``day`` of this world in ms since 1970."""
        return self.config.start_ms + round(day * DAY_MS)

    def _simulation(self) -> Simulation:
        return Simulation(self.config, self.seed, self._model)

    def _ticks(self, simulation: Simulation, events: int | None, days: float | None) -> Iterator[Tick]:
        if (events is None) == (days is None):
            raise ValueError("events, days: give one of them, how long the log is to be")
        if events is not None and events < 1:
            raise ValueError(f"events: expected at least 1, found {events}")
        if days is not None and not 0 < days < float("inf"):
            raise ValueError(f"days: expected a number above 0, found {days}")
        return simulation.ticks(self._intercepts, events, days)

    def _observed(self, ticks: Iterator[Tick], until: int | None) -> Iterator[pa.Table]:
        return (tick.table if until is None else observed(tick.table, self.config, until) for tick in ticks)
