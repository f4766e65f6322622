"""Event logs: what their columns mean, how they are stored, and the batches a model sees."""

from __future__ import annotations

from octavo.data.adsworld import PRESETS, AdsWorld, AdsWorldConfig, bayes_optimum, preset, preset_hash
from octavo.data.batch import Batch
from octavo.data.demo import write_demo_log
from octavo.data.encoding import encode_events, encode_table
from octavo.data.errors import DataError
from octavo.data.event_log import EventLog
from octavo.data.labels import labels_as_of
from octavo.data.prefetch import prefetched
from octavo.data.roots import data_root
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.sets import SETS, RealSet, movielens
from octavo.data.transforms import Clip, Log1p, Standardise

__all__ = [
    "PRESETS",
    "SETS",
    "AdsWorld",
    "AdsWorldConfig",
    "Batch",
    "Clip",
    "DataError",
    "Dense",
    "EventLog",
    "Label",
    "Log1p",
    "RealSet",
    "Schema",
    "Sparse",
    "Standardise",
    "bayes_optimum",
    "data_root",
    "encode_events",
    "encode_table",
    "labels_as_of",
    "movielens",
    "prefetched",
    "preset",
    "preset_hash",
    "write_demo_log",
]
