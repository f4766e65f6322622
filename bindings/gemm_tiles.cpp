#include "gemm/measured_tiles.hpp"

#include <pybind11/stl.h>

#include "module.hpp"

#ifdef OCTAVO_WITH_CUDA
#include "gemm/gemm.hpp"
#endif

namespace octavo::bindings {

namespace {

using cuda::Major;
using cuda::Product;
using cuda::Residual;
using cuda::Schedule;
using cuda::Store;
using cuda::Tile;
using cuda::TileRequest;

const char* word(Product product) {
  switch (product) {
    case Product::e4m3: return "e4m3";
    case Product::e4m3_fast: return "e4m3_fast";
    case Product::bf16: return "bf16";
    case Product::e4m3_block: return "e4m3_block";
    default: return "e5m2";
  }
}
const char* word(Store store) { return store == Store::tma ? "tma" : store == Store::direct ? "direct" : "norm"; }
const char* word(Schedule schedule) {
  return schedule == Schedule::plain ? "plain" : schedule == Schedule::pingpong ? "pingpong" : "cooperative";
}
const char* word(Major major) { return major == Major::k ? "k" : "mn"; }

// The enumerator of this name; `last` is the largest.
template <class Enum>
Enum named(const char* argument, const std::string& name, Enum last) {
  for (int i = 0; i <= static_cast<int>(last); ++i)
    if (name == word(static_cast<Enum>(i))) return static_cast<Enum>(i);
  throw py::value_error(std::string(argument) + ": found '" + name + "'; octavo's tiles have no such word");
}

py::dict described(const Tile& tile) {
  py::dict d;
  d["name"] = tile.name;
  d["product"] = word(tile.product);
  d["store"] = word(tile.store);
  d["schedule"] = word(tile.schedule);
  d["shape"] = py::make_tuple(tile.m, tile.n, tile.k);
  d["cluster"] = tile.cluster_m;
  d["swap"] = tile.swap;
  d["x_major"] = word(tile.x_major);
  d["w_major"] = word(tile.w_major);
  return d;
}

TileRequest request(const std::string& product, std::int64_t m, std::int64_t n, std::int64_t k,
                    const std::string& x_major, const std::string& w_major, bool d_is_f32, bool d_aligned, bool norm,
                    bool residual, std::int64_t norm_block = 0) {
  TileRequest r;
  r.product = named("product", product, Product::e4m3_block);
  r.m = m;
  r.n = n;
  r.k = k;
  r.x_major = named("x_major", x_major, Major::mn);
  r.w_major = named("w_major", w_major, Major::mn);
  r.d_is_f32 = d_is_f32;
  r.d_aligned = d_aligned;
  r.norm = norm;
  r.norm_block = norm_block;
  r.residual = residual ? (d_is_f32 ? Residual::f32 : Residual::bf16) : Residual::none;
  return r;
}

int index_of(const std::string& name) {
  const int index = cuda::tile_index(name.c_str());
  if (index < 0) throw py::key_error("no tile named " + name + "; gemm_tiles() lists them");
  return index;
}

void keep_times(const std::map<std::string, double>& us, const std::string& product, std::int64_t m, std::int64_t n,
                std::int64_t k, bool d_is_f32, bool d_aligned, bool norm) {
  std::vector<cuda::RankedTile> times;
  for (const auto& [name, time] : us) times.push_back({index_of(name), time});
  cuda::keep_tile_times(request(product, m, n, k, "k", "k", d_is_f32, d_aligned, norm, false), times);
}

#ifdef OCTAVO_WITH_CUDA
cuda::Gemm contiguous(const Tile& tile, int m, int n, int k) {
  cuda::Gemm g;
  g.m = m;
  g.n = n;
  g.k = k;
  g.ldx = tile.x_major == Major::k ? k : m;
  g.ldw = tile.w_major == Major::k ? k : n;
  g.ldd = n;
  if (tile.store == Store::norm) g.norm = NormKind::rms;
  return g;
}

// What CUTLASS says of contiguous operands of this shape: "" or its refusal. On the host, without a device.
std::string refused_by_cutlass(const std::string& name, int m, int n, int k, int norm_block) {
  const int index = index_of(name);
  cuda::Gemm g = contiguous(cuda::kTiles[static_cast<std::size_t>(index)], m, n, k);
  g.norm_block = norm_block;
  const Status status = cuda::accepts_gemm(index, g);
  return status.ok() ? "" : status.message();
}

// d [m, n] = x w^T by this kernel, whatever the choice would be: contiguous operands, scales as problem.hpp has them,
// or 0 for ones. For tests and tuning.
void run_tile(const std::string& name, int m, int n, int k, std::uintptr_t x, std::uintptr_t w, std::uintptr_t x_scale,
              std::uintptr_t w_scale, std::uintptr_t d, bool d_is_f32, std::uintptr_t stream) {
  const int index = index_of(name);
  const Tile& tile = cuda::kTiles[static_cast<std::size_t>(index)];
  const cuda::TileRequest asked = request(word(tile.product), m, n, k, word(tile.x_major), word(tile.w_major), d_is_f32,
                                          d % 16 == 0, tile.store == Store::norm, false);
  if (const std::string refusal = cuda::tile_refusal(tile, asked); !refusal.empty())
    throw py::value_error(name + ": " + refusal);
  if (tile.product == Product::e4m3_block && (x_scale == 0 || w_scale == 0))
    throw py::value_error(name + ": needs the scales of its blocks");
  cuda::Gemm g = contiguous(tile, m, n, k);
  g.x = reinterpret_cast<const void*>(x);
  g.w = reinterpret_cast<const void*>(w);
  g.x_scale = reinterpret_cast<const float*>(x_scale);
  g.w_scale = reinterpret_cast<const float*>(w_scale);
  g.d = reinterpret_cast<void*>(d);
  g.d_dtype = d_is_f32 ? DType::f32 : DType::bf16;
  run_released([&] { return cuda::run_gemm(index, g, reinterpret_cast<cudaStream_t>(stream)); });
}
#endif

}  // namespace

// The GEMM kernels for Hopper and the choice among them, in every build; private, for tests and tools.
void bind_gemm_tiles(py::module_& m) {
  m.def("gemm_tiles", [] {
    py::list rows;
    for (const Tile& tile : cuda::kTiles) rows.append(described(tile));
    return rows;
  });
  m.def(
      "rank_gemm_tiles",
      [](const std::string& product, std::int64_t rows, std::int64_t n, std::int64_t k, const std::string& x_major,
         const std::string& w_major, bool d_is_f32, bool d_aligned, bool norm, bool residual, std::int64_t norm_block) {
        std::vector<std::pair<std::string, double>> ranked;
        for (const cuda::RankedTile& tile : cuda::rank_tiles(
                 request(product, rows, n, k, x_major, w_major, d_is_f32, d_aligned, norm, residual, norm_block)))
          ranked.emplace_back(cuda::kTiles[static_cast<std::size_t>(tile.index)].name, tile.us);
        return ranked;
      },
      py::arg("product"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("x_major") = "k", py::arg("w_major") = "k",
      py::arg("d_is_f32") = false, py::arg("d_aligned") = true, py::arg("norm") = false, py::arg("residual") = false,
      py::arg("norm_block") = 0);
  m.def("keep_gemm_times", &keep_times, py::arg("us"), py::arg("product"), py::arg("m"), py::arg("n"), py::arg("k"),
        py::arg("d_is_f32") = false, py::arg("d_aligned") = true, py::arg("norm") = false);
  m.def("forget_gemm_times", &cuda::forget_tile_times);
#ifdef OCTAVO_WITH_CUDA
  m.def("run_gemm_tile", &run_tile, py::arg("tile"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("x"),
        py::arg("w"), py::arg("x_scale"), py::arg("w_scale"), py::arg("d"), py::arg("d_is_f32"), py::arg("stream"));
  m.def("refused_by_cutlass", &refused_by_cutlass, py::arg("tile"), py::arg("m"), py::arg("n"), py::arg("k"),
        py::arg("norm_block") = 0);
#endif
}

}  // namespace octavo::bindings
