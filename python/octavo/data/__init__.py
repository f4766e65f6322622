"""Event logs: what their columns mean, how they are stored, and the batches a model sees."""

from __future__ import annotations

from octavo.data.adsworld import PRESETS, AdsWorld, AdsWorldConfig, bayes_optimum, preset, preset_hash
from octavo.data.batch import Batch
from octavo.data.convert import Conversion, convert
from octavo.data.demo import write_demo_log
from octavo.data.encoding import encode_events, encode_table
from octavo.data.errors import DataError
from octavo.data.event_log import EventLog
from octavo.data.infer import Inferred, infer_schema
from octavo.data.labels import labels_as_of
from octavo.data.prefetch import prefetched
from octavo.data.roots import data_root
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.schema_file import dump_schema, load_schema, save_schema, shipped_schemas
from octavo.data.sets import SETS, RealSet, movielens
from octavo.data.source import Made, Source
from octavo.data.transforms import Clip, Log1p, Standardise

__all__ = [
    "PRESETS",
    "SETS",
    "AdsWorld",
    "AdsWorldConfig",
    "Batch",
    "Clip",
    "Conversion",
    "DataError",
    "Dense",
    "EventLog",
    "Inferred",
    "Label",
    "Log1p",
    "Made",
    "RealSet",
    "Schema",
    "Source",
    "Sparse",
    "Standardise",
    "bayes_optimum",
    "convert",
    "data_root",
    "dump_schema",
    "encode_events",
    "encode_table",
    "infer_schema",
    "labels_as_of",
    "load_schema",
    "movielens",
    "prefetched",
    "preset",
    "preset_hash",
    "save_schema",
    "shipped_schemas",
    "write_demo_log",
]
