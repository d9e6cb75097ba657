// What is around the passes of a program: threads and their atoms, pairs within the cutoff, sums over structures.
// Needs the structs Input and Constants.
#pragma once
#include <algorithm>

#include "edges.hpp"
#include "threads.hpp"
#include "vectors.hpp"

enum { BLOCK = 32, COST_OF_ATOM = 20 };  // atoms of a block at most; an atom costs about as much as so many edges

// Cuts memory into arrays that start at cache lines.
struct Cutter {
  char* next;
  template <class X> X* take(int64_t n) {
    X* start = (X*)next;
    next += (n * sizeof(X) + 63) / 64 * 64;
    return start;
  }
};

static int64_t atoms_and_ghosts(const Input& in) { return in.n_atoms + in.n_ghosts; }
// Atoms, ghosts, then the halo of each thread.
static int64_t number_of_rows(const Input& in) { return atoms_and_ghosts(in) + in.n_threads * in.halo_capacity; }

// What every program keeps in the workspace. A thread adds to rows of its own atoms; what it has for ghosts and atoms
// of other threads goes to its halo, rows behind those of the ghosts, and the owner adds that when it needs the sum.
struct Frame {
  int64_t n_threads;
  int64_t *rows, *ends;     // edges of atom i that are within the cutoff: from rows[i] to ends[i]
  int64_t *near, *targets;  // of each edge: the neighbor, and the row to which it adds
  int64_t *species, *wrong, *first_atoms, *n_halo, *halo_atoms;
  double* counted;     // 1 for atoms whose energies count, 0 for others
  int32_t* halo_rows;  // of each thread and atom
  char* scratch;

  void lay_out(Cutter& cutter, const Input& in) {
    n_threads = in.n_threads;
    rows = cutter.take<int64_t>(in.n_atoms + 1);
    ends = cutter.take<int64_t>(in.n_atoms);
    near = cutter.take<int64_t>(in.n_edges);
    targets = n_threads > 1 && in.forces_wanted ? cutter.take<int64_t>(in.n_edges) : near;
    species = cutter.take<int64_t>(atoms_and_ghosts(in));
    counted = cutter.take<double>(in.n_atoms);
    wrong = cutter.take<int64_t>(n_threads);
    first_atoms = cutter.take<int64_t>(n_threads + 1);
    n_halo = cutter.take<int64_t>(n_threads);
    halo_atoms = cutter.take<int64_t>(n_threads * in.halo_capacity);
    halo_rows = cutter.take<int32_t>(n_threads > 1 ? n_threads * atoms_and_ghosts(in) : 0);
  }
};

// Some atoms of one thread, or some ghosts.
struct Block {
  int64_t thread, first, n;
};

// What is wrong with a call, 0 for nothing. Nothing is read or written by an index before all are checked.
enum { RIGHT, EDGES_NOT_SORTED, EDGE_OUT_OF_RANGE, STRUCTURES_NOT_SORTED, UNKNOWN_ELEMENT, EXCHANGE_FAILED };

// Checks a thread's share of the edges, and finds where those of each atom begin.
static int64_t check_edges(const Input& in, const Frame& frame, int64_t thread, int64_t n_threads) {
  const int64_t first = in.n_edges * thread / n_threads, last = in.n_edges * (thread + 1) / n_threads;
  int64_t before = first > 0 ? in.centers[first - 1] : -1, wrong = RIGHT;
  if (before >= in.n_atoms) return EDGE_OUT_OF_RANGE;
  for (int64_t e = first; e < last; ++e) {
    const int64_t center = in.centers[e];
    if (center < before) return EDGES_NOT_SORTED;
    if (center < 0 || center >= in.n_atoms) return EDGE_OUT_OF_RANGE;
    if ((uint64_t)in.neighbors[e] >= (uint64_t)atoms_and_ghosts(in)) wrong = EDGE_OUT_OF_RANGE;
    while (before < center) frame.rows[++before] = e;
  }
  if (thread + 1 < n_threads) return wrong;
  while (before < in.n_atoms) frame.rows[++before] = in.n_edges;
  return wrong;
}

// Checks a thread's share of atoms and ghosts: each structure has some, and they follow each other.
static int64_t check_atoms(const Input& in, const Constants& constants, const Frame& frame, int64_t thread,
                           int64_t n_threads) {
  const int64_t n = atoms_and_ghosts(in), first = n * thread / n_threads, last = n * (thread + 1) / n_threads;
  int64_t structure = first > 0 ? in.structures[first - 1] : -1;
  for (int64_t i = first; i < last; ++i) {
    const bool follows = in.structures[i] == structure || in.structures[i] == ++structure;
    if (!follows || structure < 0) return STRUCTURES_NOT_SORTED;
    const int64_t number = in.atomic_numbers[i];
    if (number < 0 || number >= constants.n_numbers) return UNKNOWN_ELEMENT;
    const int64_t species = constants.species_of_number[number];
    if (species < 0 || species >= constants.n_species) return UNKNOWN_ELEMENT;
    frame.species[i] = species;
  }
  if (last < n || (n == 0 && in.exchange)) return RIGHT;  // a process may have none of the atoms
  return (n > 0 ? in.structures[n - 1] : -1) + 1 == in.n_structures ? RIGHT : STRUCTURES_NOT_SORTED;
}

// The first atom of a thread, so that all have about the same work.
static int64_t first_atom(const Input& in, const Frame& frame, int64_t thread, int64_t n_threads) {
  const int64_t work = (in.n_edges + COST_OF_ATOM * in.n_atoms) * thread / n_threads;
  int64_t low = 0, high = in.n_atoms;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (frame.rows[middle] + COST_OF_ATOM * middle < work)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Lists the neighbors of a thread's atoms that are ghosts or belong to other threads, in their order. Returns how many
// there are.
static int64_t list_halo(const Input& in, const Frame& frame, int64_t thread, int64_t first, int64_t last) {
  const int64_t n_all = atoms_and_ghosts(in);
  int32_t* rows = frame.halo_rows + thread * n_all;
  std::fill(rows, rows + n_all, -1);
  for (int64_t e = frame.rows[first]; e < frame.rows[last]; ++e) rows[in.neighbors[e]] = 0;
  int64_t n = 0;
  for (int64_t j = 0; j < n_all; ++j) {
    if (rows[j] < 0 || (j >= first && j < last)) continue;
    if (n < in.halo_capacity) {
      frame.halo_atoms[thread * in.halo_capacity + n] = j;
      rows[j] = (int32_t)n;
    }
    ++n;
  }
  return n;
}

// Keeps the pairs of a block's atoms that are within the cutoff, and their vectors.
static void select_pairs(const Input& in, double cutoff, const Frame& frame, const Block& block, double* vectors) {
  const int64_t first = frame.first_atoms[block.thread], last = frame.first_atoms[block.thread + 1];
  const int64_t n_all = atoms_and_ghosts(in), halo = n_all + block.thread * in.halo_capacity;
  const int32_t* halo_rows = frame.halo_rows + block.thread * n_all;
  for (int64_t i = block.first; i < block.first + block.n; ++i) {
    const double *x = in.positions + 3 * i, *h = in.cells + 9 * in.structures[i];
    int64_t at = frame.rows[i];
    for (int64_t e = frame.rows[i]; e < frame.rows[i + 1]; ++e) {
      const int64_t j = in.neighbors[e];
      const double *y = in.positions + 3 * j, *s = in.cell_shifts + 3 * e;
      double squared = 0, r[3];
      for (int k = 0; k < 3; ++k) {
        r[k] = (y[k] - x[k]) + (s[0] * h[k] + s[1] * h[3 + k] + s[2] * h[6 + k]);
        squared += r[k] * r[k];
      }
      if (squared >= cutoff * cutoff) continue;
      for (int k = 0; k < 3; ++k) vectors[3 * at + k] = r[k];
      if (frame.targets != frame.near) frame.targets[at] = j >= first && j < last ? j : halo + halo_rows[j];
      frame.near[at++] = j;
    }
    frame.ends[i] = at;
  }
}

// Adds what all other threads have for the atoms of a block, and clears that.
template <class X>
static void gather(const Input& in, const Frame& frame, const Block& block, X* array, int64_t stride) {
  for (int64_t thread = 0; thread < frame.n_threads; ++thread) {
    const int64_t *atoms = frame.halo_atoms + thread * in.halo_capacity, *end = atoms + frame.n_halo[thread];
    const int64_t* atom = std::lower_bound(atoms, end, block.first);
    X* from = array + (atoms_and_ghosts(in) + thread * in.halo_capacity + (atom - atoms)) * stride;
    for (; atom < end && *atom < block.first + block.n; ++atom, from += stride) {
      X* to = array + *atom * stride;
      for (int64_t k = 0; k < stride; ++k) {
        to[k] += from[k];
        from[k] = 0;
      }
    }
  }
}

// Sums over the atoms of each structure, which follow each other, without ghosts. Sums of many numbers need more digits
// than these have.
template <int N, class Use> static void sum_structures(const Input& in, const double* of_atoms, Use use) {
  for (int64_t i = 0; i < in.n_atoms;) {
    const int64_t structure = in.structures[i];
    long double total[N] = {};
    for (; i < in.n_atoms && in.structures[i] == structure; ++i)
      for (int k = 0; k < N; ++k) total[k] += of_atoms[N * i + k];
    use(structure, total);
  }
  const long double nothing[N] = {};
  if (in.n_atoms == 0 && in.exchange) use(0, nothing);
}
static void sum_energy(const Input& in, const double* energies) {
  sum_structures<1>(in, energies,
                    [&](int64_t structure, const long double* total) { in.energy[structure] = total[0]; });
}
// Sums of the virials over the volumes of the cells, made symmetric; nan where a cell has no volume.
static void sum_virials(const Input& in, const double* virials) {
  if (in.atom_virials) std::copy(virials, virials + 9 * in.n_atoms, in.atom_virials);
  sum_structures<9>(in, virials, [&](int64_t structure, const long double* total) {
    const double* h = in.cells + 9 * structure;
    double volume = std::fabs(h[0] * (h[4] * h[8] - h[5] * h[7]) + h[1] * (h[5] * h[6] - h[3] * h[8]) +
                              h[2] * (h[3] * h[7] - h[4] * h[6]));
    double box = 1;
    for (const double* v = h; v < h + 9; v += 3) box *= std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    if (!(volume > SMALLEST_VOLUME * box)) volume = NAN;
    double* stress = in.stress + 9 * structure;
    for (int k = 0; k < 3; ++k)
      for (int m = 0; m < 3; ++m) stress[3 * k + m] = (total[3 * k + m] + total[3 * m + k]) / (2 * volume);
  });
}
