// The table of GEMM kernels for Hopper: one row per CollectiveBuilder instantiation, each compiled in one .cu of this
// folder. Plain C++: the choice among them (tile_choice.hpp) and its tests need no CUDA.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace octavo::cuda {

// What the tensor cores multiply and how sums are kept.
enum class Product : std::uint8_t {
  e4m3,        // E4M3 x E4M3, sums moved to FP32 registers every 128 of K
  e4m3_fast,   // E4M3 x E4M3, all of K summed in the tensor core, which keeps about 14 bits of FP8 products
  bf16,        // BF16 x BF16, FP32 sums
  e5m2,        // E5M2 x E4M3, as e4m3: gradients
  e4m3_block,  // E4M3 x E4M3 with a scale per 128 of K, which sums are multiplied by as they move to FP32
};

// How d leaves the kernel.
enum class Store : std::uint8_t {
  tma,     // BF16 through shared memory and the tensor memory accelerator
  direct,  // FP32 or BF16 at run time, element by element: any n, any leading dimension
  norm,    // as tma, behind a norm: over the whole row, where n is at most the tile's, or over blocks that divide it
};

enum class Schedule : std::uint8_t { plain, pingpong, cooperative };

// How an operand lies in memory: its rows are contiguous along K, or (BF16 only) along its own dimension.
enum class Major : std::uint8_t { k, mn };

struct Tile {
  const char* name;
  Product product;
  Store store;
  Schedule schedule;
  int m, n, k;    // of one block of threads; with `swap` m counts the problem's n
  int cluster_m;  // blocks that share loads of the other operand
  bool swap;      // the kernel computes d^T = w x^T, so that few rows of x fill the side of the tile that may be narrow
  Major x_major = Major::k, w_major = Major::k;
};

// Promoted sums fit the registers up to 96 a thread, fast ones up to 128 (cutlass-facts 0.1); promotion wants tile k
// 128.
inline constexpr std::array kTiles{
    Tile{"e4m3_swap_64x16", Product::e4m3, Store::tma, Schedule::plain, 64, 16, 128, 1, true},
    Tile{"e4m3_swap_64x64", Product::e4m3, Store::tma, Schedule::pingpong, 64, 64, 128, 1, true},
    Tile{"e4m3_64x128", Product::e4m3, Store::tma, Schedule::pingpong, 64, 128, 128, 2, false},
    Tile{"e4m3_64x192", Product::e4m3, Store::tma, Schedule::pingpong, 64, 192, 128, 2, false},
    Tile{"e4m3_128x128", Product::e4m3, Store::tma, Schedule::cooperative, 128, 128, 128, 2, false},
    Tile{"e4m3_fast_swap_64x16", Product::e4m3_fast, Store::tma, Schedule::plain, 64, 16, 256, 1, true},
    Tile{"e4m3_fast_swap_64x64", Product::e4m3_fast, Store::tma, Schedule::pingpong, 64, 64, 128, 1, true},
    Tile{"e4m3_fast_64x128", Product::e4m3_fast, Store::tma, Schedule::pingpong, 64, 128, 128, 2, false},
    Tile{"e4m3_fast_64x256", Product::e4m3_fast, Store::tma, Schedule::pingpong, 64, 256, 128, 2, false},
    Tile{"e4m3_fast_128x256", Product::e4m3_fast, Store::tma, Schedule::cooperative, 128, 256, 128, 2, false},
    Tile{"bf16_swap_64x16", Product::bf16, Store::tma, Schedule::plain, 64, 16, 128, 1, true},
    Tile{"bf16_64x128", Product::bf16, Store::tma, Schedule::pingpong, 64, 128, 64, 2, false},
    Tile{"bf16_128x256", Product::bf16, Store::tma, Schedule::cooperative, 128, 256, 64, 2, false},
    Tile{"e4m3_direct_swap_64x16", Product::e4m3, Store::direct, Schedule::plain, 64, 16, 128, 1, true},
    Tile{"e4m3_direct_64x128", Product::e4m3, Store::direct, Schedule::pingpong, 64, 128, 128, 2, false},
    Tile{"e4m3_fast_direct_64x128", Product::e4m3_fast, Store::direct, Schedule::pingpong, 64, 128, 128, 2, false},
    Tile{"bf16_direct_64x128", Product::bf16, Store::direct, Schedule::pingpong, 64, 128, 64, 2, false},
    Tile{"bf16_grad_input_64x128", Product::bf16, Store::direct, Schedule::pingpong, 64, 128, 64, 2, false, Major::k,
         Major::mn},
    Tile{"bf16_grad_weight_64x128", Product::bf16, Store::direct, Schedule::pingpong, 64, 128, 64, 2, false, Major::mn,
         Major::mn},
    Tile{"e5m2_direct_128x128", Product::e5m2, Store::direct, Schedule::cooperative, 128, 128, 128, 2, false},
    Tile{"e4m3_block_128x128", Product::e4m3_block, Store::direct, Schedule::cooperative, 128, 128, 128, 1, false},
    Tile{"e4m3_norm_64x128", Product::e4m3, Store::norm, Schedule::pingpong, 64, 128, 128, 2, false},
    Tile{"e4m3_fast_norm_64x256", Product::e4m3_fast, Store::norm, Schedule::pingpong, 64, 256, 128, 2, false},
    Tile{"bf16_norm_64x256", Product::bf16, Store::norm, Schedule::pingpong, 64, 256, 64, 2, false},
};
inline constexpr int kTileCount = static_cast<int>(kTiles.size());
static_assert(kTileCount <= 24, "the build's time allows 24 kernels");

// The row of this name; a name that is not there fails to compile where the row is needed at compile time.
constexpr int tile_index(const char* name) {
  for (int i = 0; i < kTileCount; ++i) {
    const char *a = kTiles[static_cast<std::size_t>(i)].name, *b = name;
    while (*a != '\0' && *a == *b) ++a, ++b;
    if (*a == *b) return i;
  }
  return -1;
}

// Columns whose squares the norm kernels sum before anything else: their blocks have a multiple of them.
inline constexpr int kNormStep = 64;

// Whether sums move to FP32 registers while the product runs: two sets of them.
constexpr bool promotes(Product product) { return product != Product::e4m3_fast && product != Product::bf16; }

constexpr int bytes_of(Product product) { return product == Product::bf16 ? 2 : 1; }

// Elements of an operand's contiguous dimension that make 16 bytes, which the tensor memory accelerator reads at least.
constexpr int alignment_of(Product product) { return 16 / bytes_of(product); }

}  // namespace octavo::cuda
