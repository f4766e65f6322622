"""Personalized Interpolation: any conversion window from models of fixed ones [methods.md 5; 5b for the parts]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.windows import laws
from octavo.windows.calibration import Calibration, CalibrationWarning
from octavo.windows.counts import Sparse, excess, hazard_tally
from octavo.windows.diagnosis import diagnosis
from octavo.windows.events import column, delays, probabilities, times_ms
from octavo.windows.fitting import Fitted, fit_curves
from octavo.windows.grid import Floats, Grid, Ints, WindowsError, window_ms
from octavo.windows.keys import Keys
from octavo.windows.table import LookupTable, warn_outside
from octavo.windows.through import by_request, through_all

_PRUNED = 16  # half-lives after which outcomes count for nothing (2^-16) and are forgotten


class PersonalizedInterpolator:
    """p(converts within T) for any window T, from models that predict it for fixed ones:

        p(T) = p_s + alpha_g(T) (p_l - p_s),   alpha_g(T) = (F_g(T) - F_g(T_s)) / (F_g(T_l) - F_g(T_s))

    with F_g the delay law of the request's group g [Personalized Interpolation; methods.md 5a, 5b].

    * ``windows``: of the models, increasing, such as ``("1d", "7d")``; with three or more, p is a monotone cubic
      through all of them over the group's own F (5b.3)
    * ``group``: key columns of a group, such as an advertiser; ``vertical``: key columns above it. A group's law is
      shrunk to its vertical's, that to the law of all
    * ``family``: one of :data:`octavo.windows.FAMILIES`; ``exponential_request`` takes each request's own rate from
      p_s / p_l (of three or more windows, from the two around T and the one before); ``auto`` weighs the families of
      each group by the likelihood of matured outcomes of the other half of the anchors, helped by what the level above
      found
    * ``shrink``: how many outcomes the level above counts as; ``auto`` learns it for each family, from the same
      held-out outcomes; 0 is a group alone, inf the level above alone
    * ``half_life``: age of an anchor at which it counts half; None: all count alike
    * ``bins``, ``resolution``, ``bucket``: :class:`octavo.windows.Grid`
    * ``estimator``: how the delays of anchors too young to have matured are used. ``truncated``: outcomes alone, each
      compared with those that were observable as long (product limit and likelihoods backwards in time); a conversion
      rate that moves biases nothing. :meth:`kaplan_meier` is there for those who give anchors without outcome too.

    What is refused and what is repaired: docs/windows.md. ``counts`` holds how often each repair was made.
    """

    def __init__(
        self,
        windows: Sequence[str] = ("1d", "7d"),
        group: Sequence[str] = (),
        vertical: Sequence[str] = (),
        family: str = "auto",
        shrink: float | str = "auto",
        half_life: str | None = "14d",
        *,
        bins: int = 48,
        resolution: str | None = None,
        bucket: str | None = None,
        anchor: str = "anchor",
        converted: str = "converted",
    ) -> None:
        self.windows = tuple(windows) if not isinstance(windows, str) else windows
        self.grid = Grid.of(self.windows, bins, resolution, bucket)
        known = (*laws.FAMILIES, laws.BY_REQUEST, "auto")
        if family not in known:
            raise WindowsError(f"family: found {family!r}; expected one of {', '.join(known)}")
        if isinstance(shrink, str):
            if shrink != "auto":
                raise WindowsError(f"shrink: found {shrink!r}; expected 'auto' or how many outcomes, from 0 to inf")
        elif not shrink >= 0:
            raise WindowsError(f"shrink: found {shrink}; expected 'auto' or how many outcomes, from 0 to inf")
        if isinstance(group, str) or isinstance(vertical, str):
            raise WindowsError("group, vertical: expected lists of column names")
        if vertical and not group:
            raise WindowsError("vertical: needs group, the keys below it")
        self.settings: dict[str, Any] = {
            "windows": list(self.windows), "group": list(group), "vertical": list(vertical), "family": family,
            "shrink": shrink if isinstance(shrink, str) else float(shrink), "half_life": half_life, "bins": bins,
            "resolution": resolution, "bucket": bucket, "anchor": anchor, "converted": converted,
        }  # fmt: skip
        self.half_life = None if half_life is None else window_ms(half_life, "half_life")
        self.observed_until: int | None = None
        self.counts: dict[str, int] = {}
        self.calibration: Calibration | None = None
        self._keys = Keys([*vertical, *group], len(vertical))
        self._outcomes, self._anchors = Sparse.empty(), Sparse.empty()
        self._fitted: Fitted | None = None
        self._columns: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}

    # what it has seen

    def fit(self, conversions: Any, observed_until: Any = None) -> PersonalizedInterpolator:
        """Forget everything, take ``conversions`` and estimate the laws.

        ``conversions``: columns of keys, of the anchor's time and of the conversion's (ms since 1970 or time stamps,
        null = none so far), as {name: values}, an arrow table or a data frame. ``observed_until``: when it was
        collected; default: the latest time in it. Anchors without outcome only matter to :meth:`kaplan_meier`.

        Raises :class:`octavo.windows.WindowsError` for negative delays, times after ``observed_until``, null keys, and
        where no outcome lies between two windows.
        """
        self._keys = Keys(self._keys.columns, self._keys.verticals)
        self._outcomes, self._anchors = Sparse.empty(), Sparse.empty()
        self.observed_until, self.calibration, self.counts = None, None, {}
        return self.partial_fit(conversions, observed_until).estimate()

    def partial_fit(self, conversions: Any, observed_until: Any = None, late: bool = False) -> PersonalizedInterpolator:
        """Add a part of a stream. Each outcome is given once, when it is known, and an anchor without outcome once at
        most; the order of parts does not matter. The laws are estimated when they are next needed.

        ``late``: all rows are outcomes of anchors that some part gives without outcome: no anchors more, which is what
        :meth:`kaplan_meier` counts. Rows without outcome are an error then. Calibration maps are dropped, with a
        :class:`CalibrationWarning`, for they belong to the laws from before."""
        until = self._until(conversions, observed_until)
        start, delay, came = delays(conversions, self.settings["anchor"], self.settings["converted"], until)
        if late and not came.all():
            raise WindowsError(f"conversions: row {int(came.argmin())} has no outcome; with late all rows have one")
        if self.observed_until is not None:
            until = max(until, self.observed_until)
        names = self._keys.columns
        given = {name: column(conversions, name) for name in names}
        group, _ = self._keys.encode(given, grow=True, where="conversions") if names else self._one(len(start))
        if len(group) != len(start):
            raise WindowsError(f"conversions: {len(group)} rows of keys and {len(start)} of times; expected equal")
        bucket = start // self.grid.bucket
        ones = np.ones(len(start), np.int64)
        place = self.grid.bin_of(delay)
        kept = came & (place < self.grid.bins)
        self._count("conversions after the longest window", int((came & (place >= self.grid.bins)).sum()))
        outcomes = Sparse.of(group[kept], bucket[kept], place[kept], ones[kept])
        self._outcomes = self._outcomes.plus(outcomes)
        if not late:
            self._anchors = self._anchors.plus(Sparse.of(group, bucket, np.zeros_like(bucket), ones))
        self.observed_until = until
        self._forget()
        return self

    def merge(self, other: PersonalizedInterpolator) -> PersonalizedInterpolator:
        """Add what another one has seen, as of another worker; both must have the same settings, and the same
        ``observed_until``: what one did not wait for would count as not come."""
        if self.settings != other.settings:
            named = [name for name, value in self.settings.items() if other.settings[name] != value]
            raise WindowsError(
                f"merge: {named[0]} is {other.settings[named[0]]!r}, expected {self.settings[named[0]]!r}"
            )
        if other.observed_until is None:
            return self
        if self.observed_until not in (None, other.observed_until):
            raise WindowsError(
                f"merge: it was observed until {other.observed_until} ms, this one until {self.observed_until}; give "
                "both the same observed_until"
            )
        where = self._keys.absorb(other._keys)
        self._outcomes = self._outcomes.plus(other._outcomes.regrouped(where))
        self._anchors = self._anchors.plus(other._anchors.regrouped(where))
        self.observed_until = other.observed_until
        for name, number in other.counts.items():
            self._count(name, number)
        self._forget()
        return self

    def estimate(self) -> PersonalizedInterpolator:
        """Estimate the laws from all that was seen, as of the latest ``observed_until``."""
        if self.observed_until is None:
            raise WindowsError("fit: nothing was seen; give conversions")
        chosen = self.settings["family"]
        families = laws.FAMILIES if chosen == "auto" else (chosen,)
        if chosen == laws.BY_REQUEST:
            families = ("exponential_ratio",)
        shrink = self.settings["shrink"]
        verticals = self._keys.vertical_of_group()
        self._fitted = fit_curves(
            self._outcomes, verticals, len(self._keys.vertical_codes()), self.grid, self.observed_until,
            self.half_life, families, None if shrink == "auto" else shrink,
        )  # fmt: skip
        self._columns = {}
        return self

    # predicting

    def predict(
        self,
        *given: Any,
        window: str | Sequence[str],
        groups: Any = None,
        calibrated: bool = True,
        strict: bool = False,
    ) -> npt.NDArray[Any]:
        """``predict(p_short, p_long, groups, window="3d")`` -> p(T) [n]; with several windows [n, windows].

        One p [n] for each of the models' windows, in their order, then the groups: {key column: values}, or the values
        alone for one key column. float32 stays float32. A group never seen has its vertical's law, or that of all
        (counted); a p of a longer window below that of a shorter one is raised to it (counted; an error with
        ``strict``). p never falls with T and depends on no other window that is asked for. Windows outside the models'
        own are extrapolated with an :class:`ExtrapolationWarning`, up to four times the longest. ``calibrated``: by
        :meth:`calibrate`'s maps, if there are any; windows without one lie between those that have one as they did
        before (:meth:`Calibration.curves`).
        """
        if groups is None and (self._keys.columns or len(given) > len(self.windows)):
            *given, groups = given  # type: ignore[assignment]
        if len(given) != len(self.windows):
            raise WindowsError(f"predict: {len(given)} predictions; expected one for each of {', '.join(self.windows)}")
        several = not isinstance(window, str)
        texts = [window] if isinstance(window, str) else list(window)
        spans = [window_ms(text, "window") for text in texts]
        warn_outside(self.grid, spans, texts)
        names = ("p_short", "p_long") if len(given) == 2 else tuple(f"p[{w}]" for w in self.windows)
        p = [probabilities(values, name) for values, name in zip(given, names, strict=True)]
        rows = self.rows(p[0] if groups is None else groups)
        if len({len(rows), *(len(values) for values in p)}) > 1:
            raise WindowsError(f"predict: {[len(v) for v in p]} predictions and {len(rows)} groups; expected equal")
        repaired = 0

        def predicted(span: int) -> npt.NDArray[Any]:
            nonlocal repaired
            values, repaired = self._predict(p, rows, span)  # of the same rows for every window
            return values

        if calibrated and self.calibration is not None:
            found = self.calibration.curves(predicted, spans)
        else:
            found = [predicted(span) for span in spans]
        if repaired and strict:
            raise WindowsError(f"predict: p of a longer window is below that of a shorter one in {repaired} rows")
        self._count("p_short > p_long", repaired)
        return np.stack(found, 1) if several else found[0]

    def alpha(self, groups: Any, window: str) -> Floats:
        """[n]: the groups' shares at ``window``, between the two models' windows around it (up to the shortest: of
        it)."""
        _, shares = self._column(window_ms(window, "window"))
        found: Floats = shares[self.rows(groups)].astype(np.float64)
        return found

    def rows(self, groups: Any) -> Ints:
        """[n]: each request's row among the laws: its group's, else its vertical's, else that of all (0)."""
        fitted = self._need()
        if not self._keys.columns:
            return np.zeros(len(groups), np.int64)
        group, vertical = self._keys.encode(groups)
        first = len(fitted.segments[0]) - len(self._keys)
        if not len(group) or group.min() >= 0:
            return group + first
        unseen = group < 0
        self._count("groups never seen", int(unseen.sum()))
        return np.where(unseen, vertical + 1, group + first)

    def compile(self, windows: Sequence[str], calibrated: bool = True) -> LookupTable:
        """The table that serves ``windows``. Raises :class:`WindowsError` for three or more models' windows, for
        ``exponential_request`` and for a fit with calibration maps, which depend on more than the group;
        ``calibrated=False`` compiles what was before the maps."""
        if calibrated and self.calibration is not None:
            raise WindowsError(
                "compile: a table holds shares of groups, not this fit's calibration maps; use predict, or give "
                "calibrated=False for what predict(..., calibrated=False) says"
            )
        if len(self.windows) > 2 or self.settings["family"] == laws.BY_REQUEST:
            raise WindowsError("compile: a table serves two windows and families of groups; use predict")
        spans = [window_ms(window, "windows") for window in windows]
        warn_outside(self.grid, spans, list(windows))
        found = [self._column(span) for span in spans]
        alpha = np.asfortranarray(np.stack([shares for _, shares in found], 1))
        below = tuple(segment == 0 for segment, _ in found)
        return LookupTable(alpha, tuple(spans), below, tuple(span > self.grid.windows[-1] for span in spans))

    # looking at it

    def diagnose(self, window: str | None = None) -> pa.Table:
        """A row for everything, each vertical and each group: outcomes, family and weights, the group's own share,
        alpha with its 95% interval at ``window`` (default: the middle of the first two in log time), p-values and
        flags of misfit and drift. :mod:`octavo.windows.diagnosis` has the columns. The interval is one of alpha as it
        is served, shrunk; of a single family it is right only as far as the family is (``misfit``)."""
        middle = int(np.sqrt(float(self.grid.windows[0]) * self.grid.windows[1]))
        return diagnosis(self._need(), self._keys, self.grid, middle if window is None else window_ms(window, "window"))

    def kaplan_meier(self, window: str, groups: Any = None) -> Floats:
        """P(outcome within ``window`` of the anchor) by Kaplan and Meier's estimator over all anchors, [groups] (of
        all in one where None), with their decay. It needs anchors without outcome, and a conversion rate that does not
        move with the anchors' time; alpha needs neither."""
        if self.observed_until is None:
            raise WindowsError("kaplan_meier: nothing was seen; fit first")
        missing = excess(self._outcomes, self._anchors)
        if missing:
            raise WindowsError(f"kaplan_meier: {missing} late outcomes are of anchors that were never given; give them")
        span, edges = window_ms(window, "window"), self.grid.edges
        if span > edges[-1]:
            raise WindowsError(f"window: found {window}; expected at most the longest, {self.windows[-1]}")
        where = np.zeros(max(len(self._keys), 1), np.int64)
        number = 1
        if groups is not None:
            where, number = np.arange(len(self._keys)), len(self._keys)
        events, risk = hazard_tally(
            self._outcomes.regrouped(where), self._anchors.regrouped(where), number, self.grid, self.observed_until,
            self.half_life,
        )  # fmt: skip
        reached = laws.kaplan_meier(events, risk)
        j = max(int(np.searchsorted(edges, span)) - 1, 0)
        share = (span - edges[j]) / (edges[j + 1] - edges[j])
        found: Floats = reached[:, j] + share * (reached[:, j + 1] - reached[:, j])
        if groups is None:
            return found
        rows = self._keys.encode(groups)[0]
        unseen = rows < 0
        return np.where(unseen, self.kaplan_meier(window)[0], found[rows]) if unseen.any() else found[rows]

    # calibration layer

    def calibrate(
        self, *given: Any, conversions: Any, windows: Sequence[str], observed_until: Any = None
    ) -> Calibration:
        """Fit an isotonic map for each of ``windows`` from predictions for past anchors to what came of them (5b.5).

        ``given``: as :meth:`predict` takes them; ``conversions``: the same rows' keys and times, as :meth:`fit`. Only
        anchors that are old enough for a window teach it. Returns (and keeps) the maps.
        """
        until = self._until(conversions, observed_until)
        start, delay, came = delays(conversions, self.settings["anchor"], self.settings["converted"], until)
        groups = {name: column(conversions, name) for name in self._keys.columns} or start
        spans = [window_ms(window, "windows") for window in windows]
        found = self.predict(*given, groups=groups, window=list(windows), calibrated=False)
        self.calibration = Calibration.fit(found, spans, start, np.where(came, delay, -1), until)
        return self.calibration

    # files

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the directory ``path``: windows.json and the tensors it names, whole or not at all; with ``overwrite``
        the old fit is there until the new one is.

        Raises FileExistsError where it exists, unless ``overwrite``."""
        from octavo.windows.files import save

        return save(self, Path(path), overwrite)

    @classmethod
    def load(cls, path: str | Path) -> PersonalizedInterpolator:
        """What :meth:`save` wrote: the same counts, laws and predictions to the bit. Raises :class:`WindowsError` for
        files that are damaged or of a newer version."""
        from octavo.windows.files import load

        return load(Path(path))

    # parts

    def _predict(self, p: list[npt.NDArray[Any]], rows: Ints, span: int) -> tuple[npt.NDArray[Any], int]:
        """(p(T) [n], how many rows' p had to be raised)."""
        segment, shares = self._column(span)
        if self.settings["family"] == laws.BY_REQUEST:
            return by_request(p, shares[rows], self.grid.windows, span)
        if len(p) > 2:
            ratios = [ratio[rows] for ratio in self._need().ratio[1:]]
            return through_all(p, ratios, segment, shares[rows].astype(np.float64), span > self.grid.windows[-1])
        table = LookupTable(shares[:, None], (span,), (segment == 0,), (span > self.grid.windows[-1],))
        return table.predict(p[0], p[1], rows)

    def _column(self, span: int) -> tuple[int, npt.NDArray[np.float32]]:
        """(segment, [rows] its curves at ``span`` ms); remembered."""
        if span not in self._columns:
            fitted = self._need()
            segment, j, share = self.grid.place(span)
            curves = fitted.segments[segment]
            low, high = curves[:, j].astype(np.float64), curves[:, j + 1].astype(np.float64)
            self._columns[span] = segment, np.minimum(low + share * (high - low), high).astype(np.float32)
        return self._columns[span]

    def _need(self) -> Fitted:
        if self._fitted is None:
            self.estimate()
        assert self._fitted is not None
        return self._fitted

    def _forget(self) -> None:
        """Drop what depends on the counts, and counts that no longer matter."""
        self._fitted, self._columns = None, {}
        if self.calibration is not None:
            self.calibration = None
            self._count("calibrations dropped", 1)
            warnings.warn(
                "the calibration maps were dropped: they belong to the laws from before these conversions; calibrate "
                "again, or keep them on purpose by setting .calibration to what it was",
                CalibrationWarning,
                stacklevel=3,
            )
        if self.half_life is not None and self.observed_until is not None:
            oldest = (self.observed_until - _PRUNED * self.half_life - self.grid.windows[-1]) // self.grid.bucket
            self._outcomes = self._outcomes.kept(self._outcomes.bucket >= oldest)
            self._anchors = self._anchors.kept(self._anchors.bucket >= oldest)

    def _until(self, conversions: Any, given: Any) -> int:
        if given is not None:
            if isinstance(given, str):
                given = np.datetime64(given)
            value, there = times_ms(np.asarray([given]), "observed_until")
            if not there[0]:
                raise WindowsError(f"observed_until: found {given}; expected ms since 1970 or a time stamp")
            return int(value[0])
        latest = []
        for name in (self.settings["anchor"], self.settings["converted"]):
            value, there = times_ms(column(conversions, name), f"conversions: {name!r}")
            latest += [int(value[there].max())] if there.any() else []
        if not latest:
            raise WindowsError("conversions: no rows; give at least one")
        return max(latest)

    def _one(self, rows: int) -> tuple[Ints, Ints]:
        self._keys.codes = np.zeros((1, 0), np.int64)
        return np.zeros(rows, np.int64), np.full(rows, -1)

    def _count(self, what: str, number: int) -> None:
        if number:
            self.counts[what] = self.counts.get(what, 0) + number
