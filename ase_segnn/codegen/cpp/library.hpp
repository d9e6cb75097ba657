// The C interface of a library, see segnn.h. Its constants are defined in what is generated.
#pragma once
#include "driver.hpp"
#pragma GCC visibility push(default)
#include "segnn.h"
#pragma GCC visibility pop

extern const Constants CONSTANTS;
extern const segnn_info INFO;

// Takes the workspace of a call apart: places for what the program wants and the caller does not, then the program's
// own. Returns how many bytes that takes from any address on.
static int64_t take_workspace(Input& in, char* workspace) {
  char* start = workspace + -(uintptr_t)workspace % 64;
  Cutter cutter = {start};
  int64_t* structures = cutter.take<int64_t>(atoms_and_ghosts(in));
  double *energies = cutter.take<double>(in.n_atoms), *forces = cutter.take<double>(3 * atoms_and_ghosts(in));
  double *energy = cutter.take<double>(1), *stress = cutter.take<double>(9);
  in.structures = structures;
  if (!in.energy) in.energy = energy;
  if (!in.atom_energies) in.atom_energies = energies;
  if (!in.forces) in.forces = forces;
  if (!in.stress) in.stress = stress;
  in.workspace = cutter.next;
  return cutter.next - start + workspace_size(&in) + 63;
}

// Calls the function of a call with the arrays of the library.
static int exchange_by_caller(void* context, int to_owners, int n_arrays, const Rows* arrays) {
  const segnn_call& call = *(const segnn_call*)context;
  segnn_rows rows[MOST_EXCHANGED];
  for (int k = 0; k < n_arrays; ++k) rows[k] = {arrays[k].numbers, arrays[k].width, arrays[k].size};
  return call.exchange(call.context, to_owners, n_arrays, rows);
}

// The part of a call that does not depend on its workspace.
static Input input_of(segnn_call& call) {
  Input in = {};
  in.n_atoms = call.n_atoms;
  in.n_ghosts = call.n_ghosts;
  in.n_edges = call.n_pairs;
  in.n_structures = 1;
  in.n_threads = call.n_threads;
  in.forces_wanted = call.forces || call.stress || call.atom_virials;
  in.positions = call.positions;
  in.cells = call.cell;
  in.cell_shifts = call.cell_shifts;
  in.centers = call.centers;
  in.neighbors = call.neighbors;
  in.atomic_numbers = call.atomic_numbers;
  in.shells = call.shells;
  in.energy = call.energy;
  in.atom_energies = call.atom_energies;
  in.forces = call.forces;
  in.stress = call.stress;
  in.atom_virials = call.atom_virials;
  if (call.exchange) {
    in.exchange = exchange_by_caller;
    in.context = &call;
  }
  return in;
}

// Checks that there are as many atoms in each shell as in the one before or more, and that no pair leads farther out
// than by one shell.
static int check_shells(const segnn_call& call) {
  const int64_t* shells = call.shells;
  const int64_t n_shells = INFO.reach + 1;
  if (call.exchange || shells[0] < 0 || shells[n_shells - 1] != call.n_atoms) return SEGNN_WRONG_SIZE;
  for (int64_t k = 1; k < n_shells; ++k)
    if (shells[k] < shells[k - 1]) return SEGNN_WRONG_SIZE;
  int64_t shell = 0, before = 0;
  for (int64_t e = 0; e < call.n_pairs; ++e) {
    const int64_t center = call.centers[e];
    if (center < before) return SEGNN_PAIRS_NOT_SORTED;
    if (center >= call.n_atoms) return SEGNN_PAIR_OUT_OF_RANGE;
    while (center >= shells[shell]) ++shell;
    if (call.neighbors[e] >= shells[std::min(shell + 1, n_shells - 1)]) return SEGNN_PAIR_OUT_OF_RANGE;
    before = center;
  }
  return SEGNN_OK;
}

static int check_call(const segnn_call* call) {
  if (!call) return SEGNN_MISSING_ARRAY;
  if (call->version != SEGNN_INTERFACE_VERSION) return SEGNN_WRONG_VERSION;
  if (call->n_atoms < !call->exchange || call->n_atoms > INT32_MAX) return SEGNN_WRONG_SIZE;
  if (call->n_ghosts < 0 || call->n_ghosts > INT32_MAX - call->n_atoms) return SEGNN_WRONG_SIZE;
  if (call->n_pairs < 0 || call->n_pairs > SEGNN_MOST_PAIRS) return SEGNN_WRONG_SIZE;
  if (call->n_threads < 1 || call->n_threads > SEGNN_MOST_THREADS) return SEGNN_WRONG_SIZE;
  if (call->n_ghosts && !call->exchange) return SEGNN_MISSING_ARRAY;
  const bool has_rows = call->n_atoms || call->n_ghosts;
  if (!call->cell || (has_rows && (!call->positions || !call->atomic_numbers))) return SEGNN_MISSING_ARRAY;
  if (call->n_pairs && (!call->centers || !call->neighbors || !call->cell_shifts)) return SEGNN_MISSING_ARRAY;
  return call->shells ? check_shells(*call) : SEGNN_OK;
}

static int code_of(int64_t wrong) {
  switch (wrong) {
    case RIGHT:
      return SEGNN_OK;
    case EDGES_NOT_SORTED:
      return SEGNN_PAIRS_NOT_SORTED;
    case EDGE_OUT_OF_RANGE:
      return SEGNN_PAIR_OUT_OF_RANGE;
    case EXCHANGE_FAILED:
      return SEGNN_EXCHANGE_FAILED;
    default:
      return SEGNN_UNKNOWN_ELEMENT;  // the one structure is as it should be
  }
}

extern "C" int segnn_evaluate(segnn_call* call) {
  const int wrong = check_call(call);
  if (wrong) return wrong;
  for (;;) {
    Input in = input_of(*call);
    if (in.n_threads > 1 && in.forces_wanted) {
      in.halo_capacity = std::max<int64_t>(0, std::min(call->halo_rows, atoms_and_ghosts(in)));
    }
    const int64_t size = take_workspace(in, (char*)call->workspace);
    if (size > call->workspace_size) {
      call->workspace_size = size + size / 8;
      return SEGNN_NEEDS_ROOM;
    }
    if (!call->workspace) return SEGNN_MISSING_ARRAY;
    clear((int64_t*)in.structures, atoms_and_ghosts(in));
    const int64_t result = evaluate(&in, &CONSTANTS);
    if (result >= 0) return code_of(result);
    call->halo_rows = -result + -result / 8;
  }
}

extern "C" int64_t segnn_workspace_size(int64_t n_atoms, int64_t n_pairs, int forces_or_stress) {
  Input in = {};
  in.n_atoms = n_atoms;
  in.n_edges = n_pairs;
  in.n_threads = 1;
  in.forces_wanted = forces_or_stress != 0;
  return take_workspace(in, nullptr);
}

extern "C" int64_t segnn_interface_version(void) { return SEGNN_INTERFACE_VERSION; }

extern "C" const segnn_info* segnn_get_info(void) { return &INFO; }

extern "C" const char* segnn_error_text(int code) {
  switch (code) {
    case SEGNN_OK:
      return "all is well";
    case SEGNN_NEEDS_ROOM:
      return "the workspace is too small; call again with workspace_size bytes";
    case SEGNN_WRONG_VERSION:
      return "the version of the call is not the library's; compile with the header beside it";
    case SEGNN_WRONG_SIZE:
      return "there are no atoms, the number of atoms, ghosts, pairs or threads is out of range, or shells do not fit";
    case SEGNN_MISSING_ARRAY:
      return "an input or the workspace is NULL, or the function that exchanges rows of ghosts";
    case SEGNN_PAIRS_NOT_SORTED:
      return "the pairs are not sorted by their centers";
    case SEGNN_PAIR_OUT_OF_RANGE:
      return "a pair has an index that is not from 0 to n_atoms - 1, or for ghosts to n_atoms + n_ghosts - 1, or "
             "leaves "
             "out a shell";
    case SEGNN_UNKNOWN_ELEMENT:
      return "an atomic number is none of the potential's, which segnn_get_info lists";
    case SEGNN_EXCHANGE_FAILED:
      return "the function that exchanges rows of ghosts failed";
    default:
      return "there is no such code";
  }
}
