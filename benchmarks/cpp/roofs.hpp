// What this machine can do at best, measured: copies, random row gathers, multiply loops. Plain C, so that the Python
// benchmarks load the same loops (benchmarks/python/roofs.py) that the C++ ones link.
#pragma once

#include <cstdint>

extern "C" {

// GB/s, bytes read + bytes written (write-allocate is not counted), of copying `bytes` on `threads` threads, each its
// own part, again and again for `ms` milliseconds. Non-temporal stores go past the caches.
double octavo_roof_copy(int threads, std::int64_t bytes, bool non_temporal, double ms);

// One pass: reads every line of from[0..lines * ratio * 64) and streams `lines` lines past the caches to `to`, each
// thread its own part. Both 64-byte aligned; ratio: bytes read for each byte written. What a kernel with that traffic
// and no arithmetic would take; the caller times it.
void octavo_stream_once(int threads, const void* from, void* to, std::int64_t lines, int ratio);

// Million rows/s of reading whole rows at random from a table on huge pages, prefetched to L2 64 rows ahead.
// row_bytes: rounded up to whole 64-byte lines.
double octavo_roof_gather(int threads, std::int64_t table_bytes, std::int64_t row_bytes, double ms);

// Million 64-byte lines/s of such reads at their best: over rows of 1 to 8 lines and the hints t0, t1 and nta.
double octavo_roof_lines(int threads, std::int64_t table_bytes, double ms);

// GFLOP/s (2 per multiply-add) from registers; 0 where this CPU has no such instruction.
double octavo_roof_fp32(int threads, double ms);  // FMA
double octavo_roof_bf16(int threads, double ms);  // tdpbf16ps, else vdpbf16ps
double octavo_roof_int8(int threads, double ms);  // tdpbusd, else vpdpbusd, else vpmaddwd

}  // extern "C"
