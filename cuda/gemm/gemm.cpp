#include "gemm/gemm.hpp"

#include <array>
#include <string>
#include <utility>

namespace octavo::cuda {
namespace {

struct Entry {
  Status (*accepts)(const Gemm&);
  Status (*run)(const Gemm&, cudaStream_t);
};

template <int... kIndex>
constexpr std::array<Entry, sizeof...(kIndex)> entries(std::integer_sequence<int, kIndex...>) {
  return {Entry{accepts_tile<kIndex>, run_tile<kIndex>}...};
}

constexpr auto kEntries = entries(std::make_integer_sequence<int, kTileCount>{});  // a row without a .cu does not link

}  // namespace

Status accepts_gemm(int tile, const Gemm& g) { return kEntries[static_cast<std::size_t>(tile)].accepts(g); }

Status run_gemm(int tile, const Gemm& g, cudaStream_t stream) {
  const Tile& t = kTiles[static_cast<std::size_t>(tile)];
  constexpr std::int64_t kMostBlocksAcross = 65535;  // of a grid whose blocks are one for each tile
  if (t.schedule == Schedule::plain && (t.swap ? g.m : g.n) > kMostBlocksAcross * t.n)
    return Status::unsupported(std::string(t.name) + ": more than 65,535 tiles in a row; split the batch");
  return kEntries[static_cast<std::size_t>(tile)].run(g, stream);
}

}  // namespace octavo::cuda
