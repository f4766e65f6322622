"""Every knob of an AdsWorld. Times say their unit; effects are in logits; `_sd` is a standard deviation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from octavo.config.sections import Section
from octavo.data.adsworld.laws import Exponential, Law, LogNormal

DAY_MS = 86_400_000
TICK_ROWS = 1 << 21  # impressions a tick may hold: what bounds memory
PoisonKind = Literal["scale", "swap", "null", "category"]


class Population(Section):
    """Users or items: how many there are, how unequal they are, and when they are born and die.

    ``initial`` ids exist on day 0 and were born over the 30 days before. From ``from_day`` on, ``burst`` ids appear at
    once and ``per_day`` ids a day after that; ids count up in order of birth. An id leaves after an exponential time of
    mean ``lifetime_days`` (null = never). The id of popularity rank r is drawn with weight r^-zipf; newborns take a
    random rank in 1..initial.
    """

    initial: PositiveInt
    zipf: NonNegativeFloat = 0.8
    per_day: NonNegativeFloat = 0.0
    from_day: NonNegativeFloat = 0.0
    burst: NonNegativeInt = 0
    lifetime_days: PositiveFloat | None = None


class Domain(Section):
    """A surface with its own base rates. ``ctr`` and ``cvr`` are the mean click probability of an impression and the
    mean conversion probability of a click on day 0, without drift and shifts: the intercepts are solved for them.
    ``offset`` instead of ``ctr``: logits above the first domain's click intercept. ``share``: of the sessions."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: PositiveFloat = 1.0
    ctr: float | None = Field(default=None, gt=0, lt=1)
    offset: float | None = None
    cvr: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_base_rate(self) -> Domain:
        if (self.ctr is None) == (self.offset is None):
            raise ValueError(f"domain {self.name!r}: give ctr or offset, one of them")
        return self


class Traffic(Section):
    """Sessions, their requests, and each request's candidates.

    Sessions start as a Poisson process whose rate swings over the day by ``daily_swing`` (peak at 20 h UTC). A session
    has a geometric number of requests of mean ``requests_per_session``, ``gap`` apart, all in one domain: a user's home
    with probability ``loyalty``, else any by its share. A request has ``candidates`` distinct items and shows ``shown``
    of them. Each slot keeps the item of the session's previous request with probability ``carry``; a session's first
    request keeps the slot of the user's latest session with probability ``carry_sessions``. Other slots are filled by
    popularity, a share ``retrieval`` of them from a category that the user's segment likes. The ``shown`` are those of
    the largest ranking * affinity + Gumbel noise. ``tick_minutes``: the world's parameters (who is alive, factors,
    histories) stand still within a tick, and a tick is what lies in memory.
    """

    impressions_per_day: PositiveFloat = 1e6
    tick_minutes: PositiveFloat = 60.0
    daily_swing: float = Field(default=0.5, ge=0, lt=1)
    requests_per_session: float = Field(default=1.0, ge=1)
    gap: Law = Exponential(mean=120.0)
    shown: PositiveInt = 1
    candidates: PositiveInt = Field(default=1, le=1024)
    carry: float = Field(default=0.0, ge=0, le=1)
    carry_sessions: float = Field(default=0.0, ge=0, le=1)
    retrieval: float = Field(default=0.0, ge=0, le=1)
    ranking: NonNegativeFloat = 0.0
    loyalty: float = Field(default=0.0, ge=0, le=1)

    @property
    def has_choice(self) -> bool:
        """Whether affinities decide which candidates are shown, or in which order."""
        return self.candidates > self.shown or self.ranking > 0

    @model_validator(mode="after")
    def _shown_are_candidates(self) -> Traffic:
        if self.shown > self.candidates:
            raise ValueError(f"shown: {self.shown} of {self.candidates} candidates; raise candidates or lower shown")
        rows = self.impressions_per_day * self.tick_minutes / 1440
        if rows * (1 + self.daily_swing) > TICK_ROWS:
            raise ValueError(f"tick_minutes: a tick would hold {rows:.3g} impressions; lower it to stay below 2^21")
        if self.tick_minutes * 60_000 < 1:
            raise ValueError(f"tick_minutes: {self.tick_minutes} is below a millisecond; raise it")
        return self


class Tastes(Section):
    """Latent factors. A user's are ``cluster`` segment and 1 - ``cluster`` its own (shares of the variance), an item's
    the same of its category. Affinity = ``strength`` * (u . a) / sqrt(dim), so ``strength`` is its sd in logits. In
    domain d > 0 a user's factors have correlation ``domain_correlation`` with those in domain 0. ``focus`` says how
    strongly retrieval prefers a segment's favourite categories; ``category_zipf``: sizes of the categories."""

    dim: PositiveInt = 8
    segments: PositiveInt = 12
    categories: PositiveInt = 24
    category_zipf: NonNegativeFloat = 0.8
    cluster: float = Field(default=0.4, ge=0, le=1)
    strength: NonNegativeFloat = 1.0
    domain_correlation: float = Field(default=1.0, ge=-1, le=1)
    focus: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _dims_pair_up(self) -> Tastes:
        if self.dim % 2:
            raise ValueError(f"dim: expected an even number (factors rotate in planes), found {self.dim}")
        return self


class Advertisers(Section):
    """``count`` advertisers; an item belongs to the one of rank r with weight r^-zipf. Biases of their own."""

    count: PositiveInt = 200
    zipf: NonNegativeFloat = 0.8
    click_sd: NonNegativeFloat = 0.2
    conversion_sd: NonNegativeFloat = 0.5


class Effects(Section):
    """What else moves the click logit: user and item biases, position (per place below the first), hour (a cosine,
    peak at 20 h UTC), price (per sd of its log). ``signals`` numeric inputs ~ N(0, 1) per impression, together of sd
    ``signal_sd`` in the click and in the conversion logit, by weights of their own."""

    user_sd: NonNegativeFloat = 0.4
    item_sd: NonNegativeFloat = 0.4
    position: NonNegativeFloat = 0.0
    hour: NonNegativeFloat = 0.0
    price: float = 0.0
    signals: NonNegativeInt = 0
    signal_sd: NonNegativeFloat = 0.0


class Clicks(Section):
    """``delay`` of a click after its impression, cut off at ``window_hours``."""

    delay: Law = LogNormal(median=8.0, sigma=1.0)
    window_hours: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _clicks_come_in_time(self) -> Clicks:
        if not self.delay.cdf(np.array([self.window_hours * 3600.0]))[0] > 0:
            raise ValueError(
                f"window_hours: no click comes within {self.window_hours} hours; raise it or shorten delay"
            )
        return self


class WeightedLaw(Section):
    """A delay law and the share of advertisers that follow it."""

    law: Law
    weight: PositiveFloat = 1.0


class Conversions(Section):
    """Outcomes of clicks. An advertiser follows one of ``laws``, its times multiplied by a log-normal factor of its own
    (sd of the log: ``spread``). Only conversions within ``window_days`` of the click are attributed: probabilities are
    those of an attributed conversion and the law is cut off there. ``affinity``: share of the click affinity that the
    conversion logit has; ``user_sd`` and ``item_sd``: its biases; ``price``: its effect."""

    laws: tuple[WeightedLaw, ...] = Field(default=(WeightedLaw(law=Exponential(mean=86_400.0)),), min_length=1)
    spread: NonNegativeFloat = 0.0
    window_days: PositiveFloat = 30.0
    affinity: float = 0.5
    user_sd: NonNegativeFloat = 0.3
    item_sd: NonNegativeFloat = 0.3
    price: float = 0.0


class Drift(Section):
    """Slow change. Item factors rotate, each plane of each item at its own speed ~ N(0, ``rotation``) radians a day;
    both logits swing by amplitude * sin(2 pi day / ``period_days``)."""

    rotation: NonNegativeFloat = 0.0
    click_amplitude: NonNegativeFloat = 0.0
    conversion_amplitude: NonNegativeFloat = 0.0
    period_days: PositiveFloat = 7.0


class Shift(Section):
    """Sudden change from ``day`` on: logits added, in one ``domain`` or in all; delays of a share ``advertisers`` of
    the advertisers multiplied by ``delay_factor``; factors of a share ``reshuffle`` of the items drawn anew (at the
    first tick that starts then or later)."""

    day: PositiveFloat
    click: float = 0.0
    conversion: float = 0.0
    domain: str | None = None
    reshuffle: float = Field(default=0.0, ge=0, le=1)
    delay_factor: PositiveFloat = 1.0
    advertisers: float = Field(default=1.0, ge=0, le=1)


class Poison(Section):
    """A share of impressions between two days is logged with corrupted inputs; outcomes follow the true ones. Kinds,
    equally likely: ``scale`` (price and signals times 1000), ``swap`` (those of another impression), ``null`` (no
    price), ``category`` (another one)."""

    share: float = Field(default=0.0, ge=0, le=1)
    kinds: tuple[PoisonKind, ...] = Field(default=("scale", "swap", "null", "category"), min_length=1)
    from_day: NonNegativeFloat = 0.0
    until_day: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Poison:
        if self.until_day is not None and self.until_day <= self.from_day:
            raise ValueError(f"until_day: {self.until_day} is not after from_day {self.from_day}; raise it")
        return self


class AdsWorldConfig(Section):
    """A whole world. ``start_ms``: day 0, ms since 1970. ``history``: how many of a user's latest clicked items an
    impression carries as a sequence, as known when its tick began (0 = no such column)."""

    start_ms: NonNegativeInt = 1_767_225_600_000
    users: Population = Population(initial=20_000)
    items: Population = Population(initial=5_000)
    advertisers: Advertisers = Advertisers()
    domains: tuple[Domain, ...] = Field(default=(Domain(name="feed", ctr=0.1),), min_length=1)
    traffic: Traffic = Traffic()
    tastes: Tastes = Tastes()
    effects: Effects = Effects()
    clicks: Clicks = Clicks()
    conversions: Conversions = Conversions()
    drift: Drift = Drift()
    shifts: tuple[Shift, ...] = ()
    poison: Poison = Poison()
    history: NonNegativeInt = Field(default=0, le=256)

    @model_validator(mode="after")
    def _parts_fit(self) -> AdsWorldConfig:
        names = [domain.name for domain in self.domains]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"domains: {twice[0]!r} is there twice; names must differ")
        if self.domains[0].ctr is None:
            raise ValueError(f"domains: the first, {names[0]!r}, needs ctr; offset is relative to it")
        for number, shift in enumerate(self.shifts):
            if shift.domain is not None and shift.domain not in names:
                raise ValueError(f"shifts.{number}.domain: no domain {shift.domain!r}; there are {', '.join(names)}")
        if self.items.initial < 2 * self.traffic.candidates:
            raise ValueError(
                f"items.initial: {self.items.initial} items for {self.traffic.candidates} candidates a request; "
                f"expected at least twice as many"
            )
        return self
