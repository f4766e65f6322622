"""The benchmark of ExFM's stream runs end to end in its smoke size."""

from __future__ import annotations

from test_benchmarks_quality import lines_of


def test_exfm_stream() -> None:
    rows, bars = lines_of("exfm_stream")
    assert rows == []
    assert bars["exfm_stream_ah"]["bar"] == 0.0
    assert bars["exfm_stream_ah"]["holds"] == (bars["exfm_stream_ah"]["low"] > 0)
    assert 0.8 < bars["exfm_stream_ah"]["ne_without"] < 1.3
    for control in ("shuffled", "label", "unrelated"):
        bar = bars[f"exfm_stream_control_{control}"]
        assert bar["holds"] == (-0.2 <= bar["low"] <= bar["high"] <= 0.2)
    apart = bars["exfm_stream_ah"]["figure"] - bars["exfm_stream_one_head"]["figure"]
    assert abs(apart - bars["exfm_stream_ah_over_one_head"]["figure"]) < 1e-6
    assert {"exfm_stream_ah_lag5", "exfm_stream_teacher", "exfm_stream_sa_over_ah"} <= bars.keys()
