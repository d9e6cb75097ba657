// Products of matrices whose rows follow each other.
#pragma once
#include "vectors.hpp"

// A tile of the result fills the 32 registers of AVX-512, or the 16 of others.
#if defined(__AVX512F__)
enum { TILE_ROWS = 6, TILE_VECTORS = 4 };
#else
enum { TILE_ROWS = 6, TILE_VECTORS = 2 };
#endif

// A tile of C = A B or C += A B, which stays in registers; k is the number of columns of A, n that of B and C.
template <int R, int N> static inline void multiply_tile(int k, int n, const T* A, const T* B, T* C, bool add) {
  V c[R][N];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) c[r][v] = add ? load(C + r * n + v * LANES) : V{};
  for (int x = 0; x < k; ++x) {
    V b[N];
    for (int v = 0; v < N; ++v) b[v] = load(B + (int64_t)x * n + v * LANES);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < N; ++v) c[r][v] += A[r * k + x] * b[v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) store(C + r * n + v * LANES, c[r][v]);
}

// Tiles of at most R rows and of about the same height, since low ones leave units for addition idle.
template <int R, int N>
static void multiply_rows(int64_t m, int64_t n_tiles, int k, int n, const T* A, const T* B, T* C, bool add) {
  if constexpr (R > 0) {
    for (; m > (R - 1) * n_tiles; m -= R, --n_tiles, A += R * k, C += R * n) multiply_tile<R, N>(k, n, A, B, C, add);
    if (m > 0) multiply_rows<R - 1, N>(m, n_tiles, k, n, A, B, C, add);
  }
}
template <int N>
static void multiply_columns(int64_t m, int k, int n, int start, const T* A, const T* B, T* C, bool add) {
  if constexpr (N > 0) {
    for (; start + N * LANES <= n; start += N * LANES)
      multiply_rows<TILE_ROWS, N>(m, (m + TILE_ROWS - 1) / TILE_ROWS, k, n, A, B + start, C + start, add);
    if (start < n) multiply_columns<N - 1>(m, k, n, start, A, B, C, add);
  }
}
// C = A B, or C += A B: A (m, k), B (k, n), C (m, n); n a multiple of LANES.
static inline void multiply(int64_t m, int k, int n, const T* A, const T* B, T* C, bool add) {
  multiply_columns<TILE_VECTORS>(m, k, n, 0, A, B, C, add);
}
