"""The C++ of `native` that is the same for all potentials, and what it depends on the precision.

The first template is what everything else uses: vectors, their exponential, and products of matrices. The second goes
through atoms and layers, forwards and backwards; what `native_source` fills in are calls and statements.
"""

from __future__ import annotations

import math
from string import Template
from typing import Any

import torch

_PRELUDE = Template(r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif
typedef $real T;
typedef $integer I;
// A vector fills a register, never more: compilers split longer ones through memory. The tile of a product, see below,
// fills the 32 registers of AVX-512, or the 16 of others.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, TILE_ROWS = 6, TILE_VECTORS = 4 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, TILE_ROWS = 6, TILE_VECTORS = 2 };
#else
enum { VECTOR_BYTES = 16, TILE_ROWS = 6, TILE_VECTORS = 2 };
#endif
enum { FIT = VECTOR_BYTES / sizeof(T), LANES = FIT < $divisor ? FIT : $divisor };
typedef T V __attribute__((vector_size(LANES * sizeof(T)), may_alias));
typedef I VI __attribute__((vector_size(LANES * sizeof(T))));
static inline V load(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
static inline void add_to(T* p, V v) { store(p, load(p) + v); }
// sum of N numbers, the upper half onto the lower one until one is left
template <int N> struct Sum {
  typedef T Whole __attribute__((vector_size(N * sizeof(T))));
  typedef T Half __attribute__((vector_size(N / 2 * sizeof(T))));
  static inline T of(Whole v) {
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return Sum<N / 2>::of(low + high);
  }
};
template <> struct Sum<2> {
  typedef T Whole __attribute__((vector_size(2 * sizeof(T))));
  static inline T of(Whole v) { return v[0] + v[1]; }
};
static inline T sum(V v) { return Sum<LANES>::of(v); }
// exp by x = n log 2 + r, |r| <= log(2)/2, and the power series of exp(r)
static inline V exponential(V x) {
  x = x < T($lowest) ? V{} + T($lowest) : x;
  x = x > T($highest) ? V{} + T($highest) : x;
  const V n = (x * T(1.4426950408889634) + T($rounding)) - T($rounding);
  const V r = (x - n * T($log2_high)) - n * T($log2_low);
  V y = V{} + T($first);
$series
  const VI power = (__builtin_convertvector(n, VI) + $bias) << $mantissa;
  V scale; std::memcpy(&scale, &power, sizeof scale);
  return y * scale;
}
static inline V sigmoid(V x) { return T(1) / (T(1) + exponential(-x)); }

// C = A B, or C += A B, with rows that follow each other: A (m, k), B (k, n), C (m, n); n a multiple of LANES.
// A tile of C stays in registers.
template <int R, int N>
static inline void multiply_tile(int k, int n, const T* A, const T* B, T* C, bool add) {
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
static void multiply(int64_t m, int k, int n, const T* A, const T* B, T* C, bool add) {
  multiply_columns<TILE_VECTORS>(m, k, n, 0, A, B, C, add);
}
""")

DRIVER = Template(r"""
struct Input {
$input
};
enum { N_LAYERS = $n_layers, N_ATTRIBUTES = $n_attributes, N_ENTRIES = $n_entries, PER_LAYER = $per_layer, BLOCK = 32 };
enum { N_WEIGHTS = $n_weights };
// What a call works with: its input, the place of each matrix and table, and arrays in the workspace.
struct Call : Input {
  const T *weights[N_WEIGHTS], *tables[N_LAYERS];
  int64_t* species;
};
// Of the gradients of what is sent there is a set for layers that follow each other; the first layer needs none.
enum { N_SENT = N_LAYERS > 2 ? 2 : N_LAYERS - 1 };
static const int64_t P_WIDTHS[] = {$widths}, F_WIDTHS[] = {$f_widths};

template <class X> static X* take(char*& next, int64_t n) {
  X* start = (X*)next;
  next += (n * sizeof(X) + 63) / 64 * 64;
  return start;
}

// Arrays of one thread for one block.
struct Scratch {
$scratch
  T* e;
  T* seed;
  void lay_out(char*& next) {
$take_scratch
    e = take<T>(next, BLOCK);
    seed = take<T>(next, BLOCK);
  }
};

// Everything else that is larger than a block.
struct Space {
$saved
  T* d_f[N_ENTRIES];
  T *a, *d_a, *attributes, *distances, *pair_weights, *d_attributes, *d_distances, *d_weights, *d_p, *d_sent_a;
  double *overlap, *d_overlap, *vectors, *pair_forces, *virials;
  int64_t *rows, *ends, *near, *species;
  char* scratch;
  int64_t scratch_size, d_p_width;

  // Returns the number of bytes. Gradients of what is sent come first: they are zero between calls.
  int64_t lay_out(char* start, int64_t n_atoms, int64_t n_edges, int64_t n_threads, bool forces) {
    char* next = start;
    d_p_width = 0;
    for (int64_t width : P_WIDTHS) d_p_width += (n_atoms * width + 15) / 16 * 16;
    if (forces) d_p = take<T>(next, N_SENT * n_threads * d_p_width);
$take_saved
    a = take<T>(next, n_atoms * N_ATTRIBUTES);
    overlap = take<double>(next, n_atoms);
    attributes = take<T>(next, n_edges * N_ATTRIBUTES);
    distances = take<T>(next, n_edges);
    pair_weights = take<T>(next, n_edges);
    near = take<int64_t>(next, n_edges);
    rows = take<int64_t>(next, n_atoms + 1);
    ends = take<int64_t>(next, n_atoms);
    species = take<int64_t>(next, n_atoms);
    if (forces) {
$take_gradients
      d_a = take<T>(next, n_atoms * N_ATTRIBUTES);
      d_overlap = take<double>(next, n_atoms);
      d_attributes = take<T>(next, n_edges * N_ATTRIBUTES);
      d_distances = take<T>(next, n_edges);
      d_weights = take<T>(next, n_edges);
      vectors = take<double>(next, 3 * n_edges);
      pair_forces = take<double>(next, 3 * n_threads * n_atoms);
      virials = take<double>(next, 9 * n_atoms);
      d_sent_a = take<T>(next, n_threads * n_atoms * N_ATTRIBUTES);
    }
    scratch = next;
    Scratch one;
    one.lay_out(next);
    scratch_size = next - scratch;
    return scratch + n_threads * scratch_size - start;
  }
  // What one thread adds to the gradients of what is sent; layers take turns between two.
  T* sent(int64_t layer, int64_t thread, int64_t n_threads) const {
    return d_p + (layer % (N_SENT > 1 ? 2 : 1) * n_threads + thread) * d_p_width;
  }
};

static inline void entries_of(T** entries, T* start, int64_t n_atoms) {
  for (int k = 0; k < N_ENTRIES; ++k) {
    entries[k] = start;
    start += (n_atoms * P_WIDTHS[k] + 15) / 16 * 16;
  }
}

// u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), and its slope
template <int p> static inline double envelope(double x, double* slope) {
  double power = 1;
  for (int k = 1; k < p; ++k) power *= x;  // x^(p-1)
  *slope = -0.5 * p * (p + 1) * (p + 2) * power * (1 - x) * (1 - x);
  return 1 + power * x * (-0.5 * (p + 1) * (p + 2) + x * (p * (p + 2) - x * (0.5 * p * (p + 1))));
}

// Repulsion of the nuclei i and j, see `ase_segnn.model.zbl`, and its slope.
static inline double repulsion(const Call& in, int64_t i, int64_t j, double d, double* slope) {
  *slope = 0;
  if (!in.repulsion) return 0;
  const double* of_pair = in.repulsion + 3 * (in.species[i] * in.n_species + in.species[j]);
  const double factor = of_pair[0], per_length = of_pair[1], end = of_pair[2];
  if (d >= end) return 0;
  static const double c[] = {$screening_factors}, b[] = {$screening_exponents};
  double screening = 0, d_screening = 0, d_u;
  for (int k = 0; k < (int)(sizeof b / sizeof *b); ++k) {
    const double term = c[k] * std::exp(-b[k] * per_length * d);
    screening += term;
    d_screening -= b[k] * per_length * term;
  }
  const double u = envelope<$repulsion_power>(d / end, &d_u);
  *slope = factor / d * (d_screening * u + screening * (d_u / end - u / d));
  return factor / d * screening * u;
}

// Pairs within the cutoff, their attributes and those of n atoms from i0 on; energies become the repulsion of nuclei.
static void find_pairs(const Call& in, const Space& space, int64_t i0, int64_t n) {
  for (int64_t i = i0; i < i0 + n; ++i) {
    T* a = space.a + i * N_ATTRIBUTES;
    a[0] = 1;
    for (int k = 1; k < N_ATTRIBUTES; ++k) a[k] = 0;
    const double *x = in.positions + 3 * i, *h = in.cells + 9 * in.structure[i];
    double overlap = 0, repelled = 0;
    int64_t at = space.rows[i];
    for (int64_t e = space.rows[i]; e < space.rows[i + 1]; ++e) {
      const int64_t j = in.neighbors[e];
      const double *z = in.positions + 3 * j, *s = in.cell_shifts + 3 * e;
      double r[3], squared = 0;
      for (int k = 0; k < 3; ++k) {
        r[k] = (z[k] - x[k]) + (s[0] * h[k] + s[1] * h[3 + k] + s[2] * h[6 + k]);
        squared += r[k] * r[k];
      }
      if (squared >= in.cutoff * in.cutoff) continue;
      const double d = std::sqrt(squared);
      double slope;
      repelled += 0.5 * repulsion(in, i, j, d, &slope);
      const double u = envelope<$power>(d / in.cutoff, &slope);
      const T n0 = r[0] / d, n1 = r[1] / d, n2 = r[2] / d;
      T* y = space.attributes + at * N_ATTRIBUTES;
      y[0] = 1;
$harmonics
      const T faded = u / in.average_neighbors;
      for (int k = 1; k < N_ATTRIBUTES; ++k) a[k] += faded * y[k];
      overlap += u;
      space.near[at] = j;
      space.distances[at] = d;
      space.pair_weights[at] = u / std::sqrt(in.average_neighbors);
      if (in.forces_wanted) {
        for (int k = 0; k < 3; ++k) space.vectors[3 * at + k] = r[k];
        for (int k = 0; k < N_ATTRIBUTES; ++k) space.d_attributes[at * N_ATTRIBUTES + k] = 0;
        space.d_distances[at] = space.d_weights[at] = 0;
      }
      ++at;
    }
    space.ends[i] = at;
    space.overlap[i] = overlap;
    in.atom_energies[i] = repelled;
    if (!in.forces_wanted) continue;
    for (int k = 0; k < N_ATTRIBUTES; ++k) space.d_a[i * N_ATTRIBUTES + k] = 0;
    for (int64_t x = 0; x < in.n_threads; ++x) {  // of all threads: fewer may run than were asked for
      for (int k = 0; k < N_ATTRIBUTES; ++k) space.d_sent_a[(x * in.n_atoms + i) * N_ATTRIBUTES + k] = 0;
      for (int k = 0; k < 3; ++k) space.pair_forces[3 * (x * in.n_atoms + i) + k] = 0;
    }
  }
}

// Derivatives with respect to the vectors of pairs, added to forces and virials of n atoms from i0 on.
static void add_forces(const Call& in, const Space& space, int64_t i0, int64_t n, double* forces) {
  for (int64_t i = i0; i < i0 + n; ++i) {
    const T* d_a = space.d_a + i * N_ATTRIBUTES;
    double* virial = space.virials + 9 * i;
    for (int k = 0; k < 9; ++k) virial[k] = 0;
    for (int64_t e = space.rows[i]; e < space.ends[i]; ++e) {
      const double* r = space.vectors + 3 * e;
      const T* y = space.attributes + e * N_ATTRIBUTES;
      const double d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
      double slope, repulsion_slope;
      const double u = envelope<$power>(d / in.cutoff, &slope);
      repulsion(in, i, space.near[e], d, &repulsion_slope);
      const T n0 = r[0] / d, n1 = r[1] / d, n2 = r[2] / d, faded = u / in.average_neighbors;
      (void)n0; (void)n1; (void)n2;
      T gy[N_ATTRIBUTES];
      double d_u = space.d_weights[e] / std::sqrt(in.average_neighbors) + space.d_overlap[i];
      for (int k = 1; k < N_ATTRIBUTES; ++k) {
        gy[k] = space.d_attributes[e * N_ATTRIBUTES + k] + d_a[k] * faded;
        d_u += d_a[k] * y[k] / in.average_neighbors;
      }
$harmonics_backward
      const double along = (g0 * r[0] + g1 * r[1] + g2 * r[2]) / (d * d);
      const double by_distance = space.d_distances[e] + d_u * slope / in.cutoff + 0.5 * repulsion_slope;
      const double radial_part = (by_distance - along) / d;
      const double g[3] = {g0 / d + radial_part * r[0], g1 / d + radial_part * r[1], g2 / d + radial_part * r[2]};
      for (int k = 0; k < 3; ++k) {
        forces[3 * i + k] += g[k];
        forces[3 * space.near[e] + k] -= g[k];
        for (int m = 0; m < 3; ++m) virial[3 * k + m] += r[k] * g[m];
      }
    }
  }
}

// Features of n atoms from i0 on become what they send.
static void project(const T* const* w, const Space& space, int t, int64_t i0, int64_t n) {
$f
$pointers
$project
}

// One round of messages and update.
static void update(const Call& in, const Space& space, Scratch& scratch, const Edges& edges, int t, int64_t i0,
                   int64_t n) {
  const T* const* w = in.weights + t * PER_LAYER;
$f
$next_f
$pointers
$scratch_pointers
  const T* a = space.a + i0 * N_ATTRIBUTES;
  if (t == 0)
    sum_messages_of_species(edges, in.tables[t], i0, n, in.weights[$sent], in.species, space.a, s);
  else
    sum_messages(edges, in.tables[t], i0, n, space.p[t], s);
$update
  if (t + 1 < N_LAYERS) project(in.weights + (t + 1) * PER_LAYER, space, t + 1, i0, n);
}

// Its derivative: gradients of the next features become those of these features, but for what is sent.
static void update_backward(const Call& in, const Space& space, Scratch& scratch, const Edges& edges, int t,
                            int64_t i0, int64_t n, int64_t thread) {
  const T* const* w = in.weights + t * PER_LAYER;
$f
$d_f
$pointers
$scratch_pointers
  const T* a = space.a + i0 * N_ATTRIBUTES;
  T* d_a = space.d_a + i0 * N_ATTRIBUTES;
$update_backward
  if (t == 0) {
    T* d_sent_a = space.d_sent_a + thread * in.n_atoms * N_ATTRIBUTES;
    sum_messages_of_species_backward(edges, in.tables[t], i0, n, in.weights[$sent], in.species, space.a, d_s, d_sent_a);
  } else {
    T* d_p[N_ENTRIES];
    entries_of(d_p, space.sent(t, thread, in.n_threads), in.n_atoms);
    sum_messages_backward(edges, in.tables[t], i0, n, space.p[t], d_s, d_p);
  }
}

// Adds the gradients of what all threads have for what these atoms send, and clears them.
static void sent_backward(const Call& in, const Space& space, int t, int64_t i0, int64_t n) {
  const T* const* w = in.weights + t * PER_LAYER;
$d_f
  T* dp[N_ENTRIES];
  entries_of(dp, space.sent(t, 0, in.n_threads), in.n_atoms);
  for (int k = 0; k < N_ENTRIES; ++k) dp[k] += i0 * P_WIDTHS[k];
  for (int64_t thread = 1; thread < in.n_threads; ++thread) {
    T* other[N_ENTRIES];
    entries_of(other, space.sent(t, thread, in.n_threads), in.n_atoms);
    for (int k = 0; k < N_ENTRIES; ++k) {
      T* from = other[k] + i0 * P_WIDTHS[k];
      for (int64_t x = 0; x < n * P_WIDTHS[k]; x += LANES) {
        add_to(dp[k] + x, load(from + x));
        store(from + x, V{});
      }
    }
  }
$project_backward
  for (int k = 0; k < N_ENTRIES; ++k) std::memset(dp[k], 0, n * P_WIDTHS[k] * sizeof(T));
}

// Energies of n atoms from i0 on and, if forces are wanted, the gradient of their features.
static void read_out(const Call& in, const Space& space, Scratch& scratch, int64_t i0, int64_t n) {
  const T* const* w = in.weights + $readout_first;
  const int t = N_LAYERS;
$f
$d_f
$scratch_pointers
  const T* a = space.a + i0 * N_ATTRIBUTES;
  T *e = scratch.e, *seed = scratch.seed;
$readout
  for (int64_t i = 0; i < n; ++i) {
    const int64_t z = in.species[i0 + i];
    const double apart = std::exp(-space.overlap[i0 + i]), bonded = -std::expm1(-space.overlap[i0 + i]);
    const double learned = in.energy_shifts[z] + in.energy_scale * (double)e[i];
    in.atom_energies[i0 + i] += in.reference_energies[z] + bonded * learned;
    seed[i] = bonded * in.energy_scale;
    if (in.forces_wanted) space.d_overlap[i0 + i] = apart * learned;
  }
  if (!in.forces_wanted) return;
  T* d_a = space.d_a + i0 * N_ATTRIBUTES;
  for (int k = 0; k < N_ENTRIES; ++k) std::memset(d_f[k], 0, n * F_WIDTHS[k] * sizeof(T));
$readout_backward
}

// The atoms of a structure follow each other. Sums of many energies need more digits than these have.
static void sum_energies(const Call& in) {
  for (int64_t i = 0; i < in.n_atoms;) {
    const int64_t structure = in.structure[i];
    long double total = 0;
    for (; i < in.n_atoms && in.structure[i] == structure; ++i) total += in.atom_energies[i];
    in.energy[structure] = total;
  }
}

// Sums of the virials over the volumes of the cells, made symmetric; nan where a cell has no volume.
static void sum_virials(const Call& in, const double* virials) {
  for (int64_t i = 0; i < in.n_atoms;) {
    const int64_t structure = in.structure[i];
    double total[9] = {};
    for (; i < in.n_atoms && in.structure[i] == structure; ++i)
      for (int k = 0; k < 9; ++k) total[k] += virials[9 * i + k];
    const double* h = in.cells + 9 * structure;
    double volume = std::fabs(h[0] * (h[4] * h[8] - h[5] * h[7]) + h[1] * (h[5] * h[6] - h[3] * h[8]) +
                              h[2] * (h[3] * h[7] - h[4] * h[6]));
    double box = 1;
    for (const double* v = h; v < h + 9; v += 3) box *= std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    if (!(volume > $smallest_volume * box)) volume = NAN;
    double* stress = in.stress + 9 * structure;
    for (int k = 0; k < 3; ++k)
      for (int m = 0; m < 3; ++m) stress[3 * k + m] = (total[3 * k + m] + total[3 * m + k]) / (2 * volume);
  }
}

// What is wrong with the indices of a call, 0 for nothing. Nothing is read or written by an index before.
enum { RIGHT, EDGES_NOT_SORTED, EDGE_OUT_OF_RANGE, STRUCTURES_NOT_SORTED, UNKNOWN_ELEMENT };
static int64_t check(const Call& in, const Space& space) {
  int64_t i = 0;
  bool in_range = true;
  for (int64_t e = 0; e < in.n_edges; ++e) {
    const int64_t center = in.centers[e];
    if (e > 0 && center < in.centers[e - 1]) return EDGES_NOT_SORTED;
    if (center < 0 || center >= in.n_atoms) return EDGE_OUT_OF_RANGE;
    in_range &= (uint64_t)in.neighbors[e] < (uint64_t)in.n_atoms;
    while (i <= center) space.rows[i++] = e;
  }
  if (!in_range) return EDGE_OUT_OF_RANGE;
  while (i <= in.n_atoms) space.rows[i++] = in.n_edges;
  // each structure has atoms, and they follow each other
  int64_t last = -1;
  for (i = 0; i < in.n_atoms; ++i) {
    if (in.structure[i] != last && in.structure[i] != ++last) return STRUCTURES_NOT_SORTED;
    const int64_t number = in.atomic_numbers[i];
    const int64_t species = number < 0 || number >= in.n_numbers ? in.n_species : in.species_of_number[number];
    if (species < 0 || species >= in.n_species) return UNKNOWN_ELEMENT;
    space.species[i] = species;
  }
  return last + 1 == in.n_structures ? RIGHT : STRUCTURES_NOT_SORTED;
}

#define BLOCKS \
  _Pragma("omp parallel for schedule(static) num_threads(in.n_threads)") for (int64_t b = 0; b < n_blocks; ++b)
#define BLOCK_RANGE \
  const int64_t i0 = b * size, n = i0 + size < n_atoms ? size : n_atoms - i0, thread = omp_get_thread_num(); \
  Scratch scratch; \
  char* own = space.scratch + thread * space.scratch_size; \
  scratch.lay_out(own); \
  (void)n; (void)i0;

extern "C" int64_t workspace_size(int64_t n_atoms, int64_t n_edges, int64_t n_threads, int64_t forces_wanted) {
  Space space;
  return space.lay_out(nullptr, n_atoms, n_edges, n_threads, forces_wanted);
}

// Returns 0, or what is wrong with the indices, see `check`.
extern "C" int64_t evaluate(const Input* input) {
  Call in;
  static_cast<Input&>(in) = *input;
  for (int64_t k = 0; k < N_WEIGHTS; ++k) in.weights[k] = in.learned + in.starts_of_weights[k];
  for (int64_t t = 0; t < N_LAYERS; ++t) in.tables[t] = in.learned + in.starts_of_tables[t];
  const int64_t n_atoms = in.n_atoms;
  Space space;
  space.lay_out(in.workspace, n_atoms, in.n_edges, in.n_threads, in.forces_wanted);
  in.species = space.species;
  if (const int64_t wrong = check(in, space)) return wrong;
  if (in.forces_wanted && !in.workspace_is_clean)
    std::memset(space.d_p, 0, N_SENT * in.n_threads * space.d_p_width * sizeof(T));

  const Edges edges = {space.rows, space.ends, space.near, space.attributes, space.distances, space.pair_weights,
                       space.d_attributes, space.d_distances, space.d_weights, in.n_intervals,
                       (T)(in.n_intervals / in.cutoff)};
  const int64_t share = (n_atoms + in.n_threads - 1) / in.n_threads, size = share < BLOCK ? share : BLOCK;
  const int64_t n_blocks = (n_atoms + size - 1) / size;
  BLOCKS {
    BLOCK_RANGE
    find_pairs(in, space, i0, n);
    {
      const T* const* w = in.weights + $embedding;
      const int t = 0;
      const T* a = space.a + i0 * N_ATTRIBUTES;
      const int64_t* species = in.species + i0;
$f
$embed
    }
  }
  for (int t = 0; t + 1 < N_LAYERS; ++t) {
    BLOCKS {
      BLOCK_RANGE
      update(in, space, scratch, edges, t, i0, n);
    }
  }
  BLOCKS {
    BLOCK_RANGE
    update(in, space, scratch, edges, N_LAYERS - 1, i0, n);
    read_out(in, space, scratch, i0, n);
    if (in.forces_wanted) update_backward(in, space, scratch, edges, N_LAYERS - 1, i0, n, thread);
  }
  sum_energies(in);
  if (!in.forces_wanted) return 0;
  for (int t = N_LAYERS - 2; t >= 0; --t) {
    BLOCKS {
      BLOCK_RANGE
      sent_backward(in, space, t + 1, i0, n);
      update_backward(in, space, scratch, edges, t, i0, n, thread);
    }
  }
  BLOCKS {
    BLOCK_RANGE
    for (int64_t x = 0; x < in.n_threads; ++x)
      for (int64_t k = i0 * N_ATTRIBUTES; k < (i0 + n) * N_ATTRIBUTES; ++k)
        space.d_a[k] += space.d_sent_a[x * n_atoms * N_ATTRIBUTES + k];
    {
      const T* const* w = in.weights + $embedding;
      const T* a = space.a + i0 * N_ATTRIBUTES;
      T* d_a = space.d_a + i0 * N_ATTRIBUTES;
      const int64_t* species = in.species + i0;
$d_f
$embed_backward
    }
    add_forces(in, space, i0, n, space.pair_forces + 3 * n_atoms * thread);
  }
  BLOCKS {
    const int64_t start = 3 * b * size, end = 3 * ((b + 1) * size < n_atoms ? (b + 1) * size : n_atoms);
    for (int64_t x = start; x < end; ++x) {
      double total = 0;
      for (int64_t thread = 0; thread < in.n_threads; ++thread) total += space.pair_forces[3 * n_atoms * thread + x];
      in.forces[x] = total;
    }
  }
  sum_virials(in, space.virials);
  return 0;
}
""")

_FLOATS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {
        "real": "float",
        "integer": "int32_t",
        "lowest": "-87.0",
        "highest": "88.0",
        "rounding": "12582912.0",  # 1.5 * 2^23: adding it rounds to an integer
        "log2_high": "0.693359375",
        "log2_low": "-2.12194440e-4",
        "bias": 127,
        "mantissa": 23,
    },
    torch.float64: {
        "real": "double",
        "integer": "int64_t",
        "lowest": "-708.0",
        "highest": "709.0",
        "rounding": "6755399441055744.0",  # 1.5 * 2^52
        "log2_high": "0.6931471803691238",
        "log2_low": "1.9082149292705877e-10",
        "bias": 1023,
        "mantissa": 52,
    },
}
_SERIES = {torch.float32: 7, torch.float64: 13}  # highest power


def divisor(channels: int) -> int:
    """Return the largest power of two that divides the channels, the most that a vector may hold."""
    return channels & -channels


def prelude(dtype: torch.dtype, channels: int) -> str:
    """Return the first part of every source: vectors of numbers of this precision, for this number of channels."""
    powers = [1 / math.factorial(k) for k in range(_SERIES[dtype] + 1)]
    return _PRELUDE.substitute(
        _FLOATS[dtype],
        divisor=divisor(channels),
        first=repr(powers[-1]),
        series="\n".join(f"  y = y * r + T({power!r});" for power in powers[-2::-1]),
    )
