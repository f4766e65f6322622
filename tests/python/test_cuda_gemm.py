"""The choice of a GEMM kernel for Hopper, which needs no device; with CUDA, that CUTLASS takes what is chosen."""

import itertools

import pytest

from octavo import _core

TILES = {tile["name"]: tile for tile in _core.gemm_tiles()}
ROWS = (1, 2, 8, 16, 17, 64, 127, 128, 129, 1000, 4096, 65536)
WIDEST = {"e4m3": 128, "e4m3_fast": 256, "bf16": 256, "e4m3_block": 0}  # columns that share a norm's statistics
SIZES = (8, 16, 64, 72, 128, 192, 256, 384, 512, 1024, 2048)
FORWARD = ("e4m3", "e4m3_fast", "e4m3_block", "bf16")
with_cuda = pytest.mark.skipif(not _core.built_with_cuda, reason="octavo was built without CUDA (OCTAVO_CUDA=ON)")


def _padded(size: int, product: str) -> int:
    step = 8 if product == "bf16" else 16
    return -(-size // step) * step


def test_there_are_at_most_24_instantiations() -> None:
    assert len(_core.gemm_tiles()) == len(TILES) <= 24


@pytest.mark.parametrize("product", FORWARD)
@pytest.mark.parametrize("options", [{}, {"d_is_f32": True}, {"residual": True}, {"d_aligned": False}])
def test_every_shape_gets_a_kernel_and_times_never_fall_as_m_grows(product: str, options: dict[str, bool]) -> None:
    for n, k in itertools.product((*SIZES, 1, 13, 1001), SIZES):
        before = 0.0
        for m in ROWS:
            name, us = _core.rank_gemm_tiles(product, m, n, _padded(k, product), **options)[0]
            assert us >= before, (m, n, k)
            before = us
            plain = n % 8 == 0 and options in ({}, {"residual": True}) and product != "e4m3_block"
            assert TILES[name]["product"] == product
            assert TILES[name]["store"] == ("tma" if plain else "direct"), (m, n, k, name)


def test_norms_are_in_the_kernel_up_to_its_columns() -> None:
    for product, limit in WIDEST.items():
        for m, n in itertools.product(ROWS, SIZES):
            ranked = _core.rank_gemm_tiles(product, m, n, 512, norm=True)
            assert bool(ranked) == (n <= limit), (product, m, n)
            assert all(TILES[name]["store"] == "norm" and TILES[name]["shape"][1] >= n for name, _ in ranked)


@pytest.mark.parametrize("block", [64, 128, 256])
def test_norms_over_blocks_of_columns_take_any_number_of_them(block: int) -> None:
    for product, m, n in itertools.product(FORWARD, ROWS, SIZES):
        ranked = _core.rank_gemm_tiles(product, m, n, 512, norm=True, norm_block=block)
        assert bool(ranked) == (block <= WIDEST[product]), (product, m, n)
        assert all(TILES[name]["store"] == "norm" and TILES[name]["shape"][1] % block == 0 for name, _ in ranked)


def test_words_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="product: found 'fp4'"):
        _core.rank_gemm_tiles("fp4", 1, 8, 16)


@with_cuda
@pytest.mark.parametrize("options", [{}, {"d_is_f32": True}, {"norm": True}, {"norm": True, "norm_block": 128}])
def test_cutlass_takes_what_is_chosen(options: dict[str, int]) -> None:
    for product, m, n, k in itertools.product(FORWARD, ROWS, (*SIZES, 13), SIZES):
        depth = _padded(k, product)
        for name, _ in _core.rank_gemm_tiles(product, m, n, depth, **options):
            refusal = _core.refused_by_cutlass(name, m, n, depth, options.get("norm_block", 0))
            assert refusal == "", (name, m, n, depth)


@with_cuda
def test_cutlass_takes_gradients() -> None:
    for m, n, k in itertools.product((8, 64, 1000, 4096), (8, 72, 512), (16, 64, 2048)):
        for name, _ in _core.rank_gemm_tiles("e5m2", m, n, k, d_is_f32=True):
            assert _core.refused_by_cutlass(name, m, n, k) == ""
        for majors in ({"w_major": "mn"}, {"x_major": "mn", "w_major": "mn"}):
            ranked = _core.rank_gemm_tiles("bf16", m, n, k, d_is_f32=True, **majors)
            assert ranked
            assert _core.refused_by_cutlass(ranked[0][0], m, n, k) == ""


@with_cuda
def test_cutlass_refuses_what_the_choice_refuses() -> None:
    for tile, m, n, k in (
        ("e4m3_64x128", 64, 132, 128),
        ("e4m3_64x128", 64, 128, 120),
        ("e4m3_norm_64x128", 4, 136, 64),
        ("bf16_64x128", 64, 128, 4),
        ("e4m3_swap_64x16", 8, 12, 64),
    ):
        assert tile in _core.refused_by_cutlass(tile, m, n, k)
        product, norm = TILES[tile]["product"], TILES[tile]["store"] == "norm"
        assert tile not in [name for name, _ in _core.rank_gemm_tiles(product, m, n, k, norm=norm)]
    with pytest.raises(KeyError, match="no tile named"):
        _core.refused_by_cutlass("e4m3", 1, 8, 16)
