#include "gemm/measured_tiles.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <shared_mutex>
#include <tuple>

#include "octavo/dispatch.hpp"

namespace octavo::cuda {
namespace {

using Times = std::map<int, double>;   // us by place in kTiles
using Buckets = std::map<int, Times>;  // by m_bucket
using Key = std::tuple<Product, std::int64_t, std::int64_t, Major, Major, bool, bool, bool>;

struct Known {
  std::shared_mutex mutex;
  std::map<Key, Buckets> times;
  std::atomic<std::uint64_t> version = 0;
  std::atomic<bool> any = false;  // a launch on a machine that was never tuned takes no lock
};
Known& known() {
  static auto* times = new Known;  // never destroyed, as the registry
  return *times;
}

Key key(const TileRequest& r) { return {r.product, r.n, r.k, r.x_major, r.w_major, r.d_is_f32, r.d_aligned, r.norm}; }

// The best time among the tiles that take the request; infinity where none does.
double best(const Times& times, const std::vector<RankedTile>& able) {
  double found = std::numeric_limits<double>::infinity();
  for (const RankedTile& tile : able)
    if (const auto time = times.find(tile.index); time != times.end()) found = std::min(found, time->second);
  return found;
}

// Tiles with a time first, sorted by it; the others behind them, as they were.
void put_measured_first(const Times& times, std::vector<RankedTile>& ranked) {
  const auto end = std::stable_partition(ranked.begin(), ranked.end(),
                                         [&](const RankedTile& tile) { return times.contains(tile.index); });
  for (auto tile = ranked.begin(); tile != end; ++tile) tile->us = times.at(tile->index);
  std::stable_sort(ranked.begin(), end, [](const RankedTile& a, const RankedTile& b) { return a.us < b.us; });
}

}  // namespace

void keep_tile_times(const TileRequest& request, const std::vector<RankedTile>& times) {
  Known& all = known();
  const std::unique_lock lock(all.mutex);
  Times& kept = all.times[key(request)][m_bucket(request.m)];
  kept.clear();
  for (const RankedTile& tile : times) kept[tile.index] = tile.us;
  all.any = true;
  ++all.version;
}

void forget_tile_times() {
  Known& all = known();
  const std::unique_lock lock(all.mutex);
  all.times.clear();
  all.any = false;
  ++all.version;
}

std::uint64_t tile_times_version() { return known().version; }

std::vector<RankedTile> by_measured_times(const TileRequest& request, std::vector<RankedTile> ranked) {
  Known& all = known();
  if (!all.any || ranked.empty()) return ranked;
  const std::shared_lock lock(all.mutex);
  const auto found = all.times.find(key(request));
  if (found == all.times.end()) return ranked;

  const int bucket = m_bucket(request.m);
  double least = 0.0, most = std::numeric_limits<double>::infinity();
  for (const auto& [b, times] : found->second) {
    const double us = best(times, ranked);
    if (us == std::numeric_limits<double>::infinity()) continue;
    if (b > bucket) {
      most = std::max(least, us);
      break;
    }
    least = std::max(least, us);
    if (b < bucket) continue;
    put_measured_first(times, ranked);
    most = least;
    break;
  }
  // The first's time is bounded on both sides, the others follow it.
  ranked.front().us = std::clamp(ranked.front().us, least, most);
  for (std::size_t i = 1; i < ranked.size(); ++i) ranked[i].us = std::max(ranked[i].us, ranked[i - 1].us);
  return ranked;
}

}  // namespace octavo::cuda
