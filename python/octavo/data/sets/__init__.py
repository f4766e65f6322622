"""Real data sets as event logs: one module each, opened by name."""

from __future__ import annotations

from octavo.data.sets.deskdrop import DESKDROP
from octavo.data.sets.hotel_bookings import HOTEL_BOOKINGS
from octavo.data.sets.movielens import MOVIELENS, MOVIELENS_BY_USER, movielens
from octavo.data.sets.online_retail import ONLINE_RETAIL
from octavo.data.sets.real_set import RealSet
from octavo.data.sets.taobao_2h import TAOBAO_2H

SETS: dict[str, RealSet] = {
    "movielens": MOVIELENS,
    "deskdrop": DESKDROP,
    "hotel_bookings": HOTEL_BOOKINGS,
    "online_retail": ONLINE_RETAIL,
    "taobao_2h": TAOBAO_2H,
}

__all__ = ["MOVIELENS_BY_USER", "SETS", "RealSet", "movielens"]
