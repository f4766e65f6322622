"""Named worlds, frozen: a benchmark names one and changes nothing in it. Their hashes are pinned by a test.

Free parameters were chosen once. Where a real set has the statistic, it was computed from that set and the preset tuned
until its own log shows the same one (``tests/python/test_data_adsworld_matched.py`` holds both sides):

================================  ===============================================  ==========================
statistic                         real set and its value                           preset
================================  ===============================================  ==========================
skew of items [1]_                ml-1m 0.79, ml-100k 0.78, online_retail 0.78     reference
skew of users [1]_                ml-1m 0.68; the top tenth has 38% of the rows    reference
click rate                        Criteo display sample 20.9%                      reference, first domain
conversion rate and delay         deskdrop likes 13.3%; delay quantiles            reference
                                  25/50/75/90% = 34 s, 110 s, 503 s, 2.1 h
price                             online_retail: ln ~ N(0.73, 1.07)                all
swing of the conversion rate      hotel_bookings, cancelled within 7 days:         drift
                                  5.5% (2015Q4) to 17.5% (2017Q2)
delays, pooled                    hotel_bookings 25/50/75% = 2, 13, 57 days,       delay, ten times faster
                                  sd of agents' log medians 1.12
repeated pairs                    deskdrop: 27.6% of the views of the log's        rerequest, one day
                                  second half repeat a (person, content)
views a session, gaps in one      deskdrop 2.14; 25/50/75% = 11 s, 136 s, 49 min   rerequest
rows of users never seen before   ml-100k: 85.2% of the last fifth                 cold, seven days
recency coverage at TTL 5 min,    methods.md 2e (3): 22.6, 34.4, 41.4%             solaris
30 min, 6 h; popularity at 6 h    and 17.7%
================================  ===============================================  ==========================

.. [1] minus the slope of ln count against ln rank between the first hundredth and the middle of the ranks.
"""

from __future__ import annotations

import difflib

from octavo.config import ConfigError, config_hash
from octavo.data.adsworld.config import (
    AdsWorldConfig,
    Advertisers,
    Conversions,
    Domain,
    Drift,
    Effects,
    Population,
    Shift,
    Tastes,
    Traffic,
    WeightedLaw,
)
from octavo.data.adsworld.laws import Exponential, LogNormal, Mixture, Weibull

_HOUR, _DAY = 3600.0, 86_400.0

# Fitted to deskdrop's 5,371 likes after the first view, and to the gaps between views of one session.
_LIKES = Mixture(weights=(0.7, 0.3), parts=(LogNormal(median=72.0, sigma=1.465), LogNormal(median=1598.0, sigma=3.652)))
_GAPS = Mixture(weights=(0.8, 0.2), parts=(LogNormal(median=45.6, sigma=3.06), LogNormal(median=10_630.0, sigma=0.747)))

# Three surfaces, the bread and butter of feed ads. Tastes are mostly those of segments and categories: who knows all
# but the users' own is 0.006 AUC below the truth (three seeds), so a model can come close without knowing every user.
_REFERENCE = AdsWorldConfig(
    users=Population(initial=10_000, zipf=0.7, per_day=100.0, lifetime_days=100.0),
    items=Population(initial=2_000, zipf=0.79, per_day=40.0, lifetime_days=50.0),
    advertisers=Advertisers(count=200),
    domains=(
        Domain(name="feed", share=0.6, ctr=0.209, cvr=0.133),
        Domain(name="reels", share=0.3, ctr=0.12, cvr=0.08),
        Domain(name="market", share=0.1, ctr=0.05, cvr=0.2),
    ),
    traffic=Traffic(
        impressions_per_day=2e6,
        tick_minutes=40.0,
        requests_per_session=2.0,
        gap=LogNormal(median=136.0, sigma=1.5),
        shown=4,
        candidates=12,
        carry=0.3,
        retrieval=0.3,
        ranking=0.5,
        loyalty=0.5,
    ),
    tastes=Tastes(cluster=0.95, strength=0.8, domain_correlation=0.95),
    effects=Effects(position=0.15, hour=0.2, price=-0.15, signals=4, signal_sd=0.5),
    conversions=Conversions(laws=(WeightedLaw(law=_LIKES),), price=-0.1),
    history=16,
)

# Rotating factors and swinging rates from the start; on day 7 a third of the items change and the feed's rate drops.
_DRIFT = _REFERENCE.model_copy(
    update={
        "domains": (
            Domain(name="feed", share=0.6, ctr=0.209, cvr=0.103),
            Domain(name="reels", share=0.3, ctr=0.12, cvr=0.08),
            Domain(name="market", share=0.1, ctr=0.05, cvr=0.2),
        ),
        "traffic": _REFERENCE.traffic.model_copy(update={"impressions_per_day": 5e5, "tick_minutes": 60.0}),
        "drift": Drift(rotation=0.25, click_amplitude=0.3, conversion_amplitude=0.7, period_days=6.0),
        "shifts": (Shift(day=7.0, reshuffle=0.33), Shift(day=7.0, click=-0.5, domain="feed")),
    }
)

# Five families of law over advertisers of very different speed: windows of 1 and 7 days cut them unequally.
_DELAY = _REFERENCE.model_copy(
    update={
        "users": Population(initial=10_000, zipf=0.7),
        "items": Population(initial=2_000, zipf=0.79),
        "advertisers": Advertisers(count=200, zipf=0.4),
        "domains": (Domain(name="feed", ctr=0.209, cvr=0.274),),
        "traffic": _REFERENCE.traffic.model_copy(update={"impressions_per_day": 2e5, "tick_minutes": 240.0}),
        "conversions": Conversions(
            laws=(
                WeightedLaw(law=Exponential(mean=2.0 * _DAY)),
                WeightedLaw(law=Weibull(shape=0.4, scale=5.0 * _DAY), weight=3.0),
                WeightedLaw(law=Weibull(shape=1.5, scale=2.0 * _DAY)),
                WeightedLaw(law=LogNormal(median=1.5 * _DAY, sigma=1.5)),
                WeightedLaw(
                    law=Mixture(
                        weights=(0.4, 0.6), parts=(Exponential(mean=_HOUR), LogNormal(median=6.0 * _DAY, sigma=0.7))
                    ),
                    weight=2.0,
                ),
            ),
            spread=1.2,
        ),
    }
)

_REREQUEST = _REFERENCE.model_copy(
    update={
        "users": Population(initial=20_000, zipf=0.7, per_day=200.0, lifetime_days=100.0),
        "items": Population(initial=4_000, zipf=0.79, per_day=80.0, lifetime_days=50.0),
        "traffic": Traffic(
            impressions_per_day=5e5,
            tick_minutes=60.0,
            requests_per_session=2.14,
            gap=_GAPS,
            shown=4,
            candidates=20,
            carry=0.63,
            carry_sessions=0.42,
            retrieval=0.3,
            ranking=0.5,
            loyalty=0.8,
        ),
    }
)

# Users that come for hours and never again; from day 4 on items are new too, 400 of them at once.
_COLD = _REFERENCE.model_copy(
    update={
        "users": Population(initial=4_000, zipf=0.7, per_day=12_000.0, lifetime_days=0.2),
        "items": Population(initial=2_000, zipf=0.79, from_day=4.0, burst=400, per_day=300.0, lifetime_days=20.0),
        "traffic": _REFERENCE.traffic.model_copy(update={"impressions_per_day": 3e5, "tick_minutes": 60.0}),
    }
)

# methods.md 2e (3): 4,000 users, 3,000 ads of Zipf 0.9, 30 candidates, 60% carried over, geometric sessions.
_SOLARIS = AdsWorldConfig(
    users=Population(initial=4_000, zipf=0.0),
    items=Population(initial=3_000, zipf=0.9),
    domains=(Domain(name="feed", ctr=0.1),),
    traffic=Traffic(
        impressions_per_day=4_000 * 3.5 * 2.9 * 4,
        tick_minutes=60.0,
        daily_swing=0.3,
        requests_per_session=2.9,
        gap=Exponential(mean=200.0),
        shown=4,
        candidates=30,
        carry=0.6,
        ranking=0.5,
    ),
    tastes=Tastes(cluster=0.3, strength=1.2),
    effects=Effects(position=0.15, signals=4, signal_sd=0.5),
    history=16,
)

# methods.md 4e, middle row: 3,000 users x 400 ads of Zipf 0.7, 6 latent dimensions, 8% clicks. A step of the student is
# a tick of 10 minutes: 256 rows of its own domain in 2,304; its teacher sees all of them, the other domain +0.8 logit.
# Factors rotate by 0.002 radians a step. 400 steps are 921,600 rows.
_EXFM = AdsWorldConfig(
    users=Population(initial=3_000, zipf=0.7),
    items=Population(initial=400, zipf=0.7),
    advertisers=Advertisers(count=40, click_sd=0.0),
    domains=(Domain(name="own", share=1.0, ctr=0.08), Domain(name="other", share=8.0, offset=0.8)),
    traffic=Traffic(impressions_per_day=2304.0 * 144, tick_minutes=10.0, daily_swing=0.0),
    tastes=Tastes(dim=6, segments=1, categories=1, cluster=0.0, strength=1.0, domain_correlation=0.8),
    effects=Effects(user_sd=0.3, item_sd=0.3),
    drift=Drift(rotation=0.002 * 144, click_amplitude=0.3, period_days=100 / 144),
)

PRESETS = {
    "reference": _REFERENCE,
    "drift": _DRIFT,
    "delay": _DELAY,
    "rerequest": _REREQUEST,
    "cold": _COLD,
    "solaris": _SOLARIS,
    "exfm": _EXFM,
}


def preset(name: str) -> AdsWorldConfig:
    """The configuration of a preset. Raises :class:`ConfigError` for a name that is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"preset {name!r}: there is none of this name{hint} (there are {', '.join(PRESETS)})")
    return PRESETS[name]


def preset_hash(name: str) -> str:
    """SHA-256 (hex) of the preset's resolved configuration."""
    return config_hash(preset(name))
