"""What a teacher said about examples: records, their codec, the lineage of its versions, and where records are kept."""

from __future__ import annotations

from octavo.store.cache import RecordCache
from octavo.store.codec import Codec, codec
from octavo.store.lineage import Lineage, LineageError, Version
from octavo.store.record import Records
from octavo.store.record_log import RecordLog, StoreError

__all__ = ["Codec", "Lineage", "LineageError", "RecordCache", "RecordLog", "Records", "StoreError", "Version", "codec"]
