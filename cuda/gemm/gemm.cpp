#include "gemm/gemm.hpp"

#include <array>
#include <memory>
#include <string>
#include <utility>

#include "device/recent_calls.hpp"

namespace octavo::cuda {
namespace {

struct Entry {
  Status (*accepts)(const Gemm&);
  Status (*prepare)(const Gemm&, void*, StreamBuffer&, cudaStream_t, GemmParams&);
  Status (*launch)(const GemmParams&, cudaStream_t, bool);
};

template <int... kIndex>
constexpr std::array<Entry, sizeof...(kIndex)> entries(std::integer_sequence<int, kIndex...>) {
  return {Entry{accepts_tile<kIndex>, prepare_tile<kIndex>, launch_tile<kIndex>}...};
}

constexpr auto kEntries = entries(std::make_integer_sequence<int, kTileCount>{});  // a row without a .cu does not link

// Everything that parameters are made of. Whatever the memory holds by now, they are right for it.
struct Call {
  int tile = -1, device = -1;
  Gemm gemm;
  void* row = nullptr;
  bool operator==(const Call&) const = default;
};

using Recent = RecentCalls<Call, GemmParams, 64>;
Recent& recent() {
  thread_local const auto calls = std::make_unique<Recent>();  // 180 KB, where a GEMM was launched
  return *calls;
}

std::size_t hash_of(const Call& call) {
  const Gemm& g = call.gemm;
  const auto address = [](const void* p) { return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(p)); };
  return cuda::hash_of({call.tile, g.m, g.n, g.k, address(g.x), address(g.w), address(g.d), address(g.bias)});
}

// A kernel whose scales a warp loads without waiting for the kernels before (docs/decisions.md) starts behind them.
bool waits_itself(const Tile& tile) { return tile.product != Product::e4m3_block; }

}  // namespace

Status accepts_gemm(int tile, const Gemm& g) { return kEntries[static_cast<std::size_t>(tile)].accepts(g); }

Status run_gemm(int tile, const Gemm& g, cudaStream_t stream) {
  const Tile& t = kTiles[static_cast<std::size_t>(tile)];
  const Entry& entry = kEntries[static_cast<std::size_t>(tile)];
  constexpr std::int64_t kMostBlocksAcross = 65535;  // of a grid whose blocks are one for each tile
  if (t.schedule == Schedule::plain && (t.swap ? g.m : g.n) > kMostBlocksAcross * t.n)
    return Status::unsupported(std::string(t.name) + ": more than 65,535 tiles in a row; split the batch");
  StreamBuffer row(stream), workspace(stream);
  if (g.d_dtype == DType::e4m3)
    if (Status s = row.allocate(static_cast<std::size_t>(t.n) * 2); !s.ok()) return s;

  Call call{tile, -1, g, row.as<void>()};
  if (Status s = checked(cudaGetDevice(&call.device), t.name); !s.ok()) return s;
  const bool early = launches_start_early() && waits_itself(t);
  const std::size_t hash = hash_of(call);
  if (const GemmParams* found = recent().find(call, hash)) return entry.launch(*found, stream, early);
  GemmParams params;
  if (Status s = entry.prepare(g, call.row, workspace, stream, params); !s.ok()) return s;
  if (workspace.as<void>() == nullptr) recent().keep(call, hash, params);
  return entry.launch(params, stream, early);
}

}  // namespace octavo::cuda
