// Runs the passes of a program on all threads. Needs the struct Space and the functions run_pass, run_ghosts,
// rows_to_fetch, rows_to_return, rows_to_clear, clear_scattered, clear_partial and sum_totals, which are generated.
#pragma once
#include <chrono>
#include <cstdlib>

#include "frame.hpp"

// What all threads share in a call.
struct Call {
  const Input& in;
  const Constants& constants;
  Space space;
  Edges edges;
  int64_t result;
};

// Lays out the workspace, and returns its size in bytes.
static int64_t lay_out(Space& space, const Input& in, char* start) {
  Cutter cutter = {start};
  space.lay_out_scattered(cutter, in);  // first, since they are zero between calls
  static_cast<Frame&>(space).lay_out(cutter, in);
  space.lay_out(cutter, in);
  space.scratch = cutter.take<char>(in.n_threads * (int64_t)sizeof(T) * BLOCK * SCRATCH_SIZE);
  return cutter.next - start;
}

// Runs a part of the work of a thread; if times are asked for, adds how long that took.
template <class Work> static void timed(const Input& in, int64_t thread, int part, Work work) {
  if (!in.busy) return work();
  const auto start = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  in.busy[thread * (1 + N_PASSES) + part] += seconds.count();
}

// Returns 0, what is wrong with the indices, or minus the room that a halo needs. All threads agree.
static int64_t prepare(Call& call, int64_t thread, int64_t n_threads) {
  const Input& in = call.in;
  Space& space = call.space;
  timed(in, thread, 0, [&] {
    const int64_t edges = check_edges(in, space, thread, n_threads);
    space.wrong[thread] = edges ? edges : check_atoms(in, call.constants, space, thread, n_threads);
  });
#pragma omp barrier
  int64_t wrong = RIGHT;
  for (int64_t k = 0; k < n_threads; ++k)
    if (space.wrong[k] && (!wrong || space.wrong[k] < wrong)) wrong = space.wrong[k];
  if (wrong) return wrong;
  const int64_t first = first_atom(in, space, thread, n_threads), last = first_atom(in, space, thread + 1, n_threads);
  space.first_atoms[thread] = first;
  if (thread + 1 == n_threads) {
    space.first_atoms[n_threads] = last;
    for (int64_t k = n_threads; k < in.n_threads; ++k) space.n_halo[k] = 0;  // fewer may run than were asked for
  }
  timed(in, thread, 0, [&] {
    space.n_halo[thread] = n_threads > 1 && in.forces_wanted ? list_halo(in, space, thread, first, last) : 0;
  });
#pragma omp barrier
  const int64_t most = *std::max_element(space.n_halo, space.n_halo + n_threads);
  if (most > in.halo_capacity) return -most;
  const int64_t end_of_counted = std::max(first, std::min(last, in.shells ? in.shells[0] : in.n_atoms));
  std::fill(space.counted + first, space.counted + end_of_counted, 1.0);
  std::fill(space.counted + end_of_counted, space.counted + last, 0.0);
  std::fill(in.atom_energies + end_of_counted, in.atom_energies + last, 0.0);
  if (in.forces_wanted && in.shells) clear_partial(space, end_of_counted, last);
  if (in.forces_wanted && !in.workspace_is_clean) {
    clear_scattered(space, first, last - first);
    if (thread == 0) clear_scattered(space, in.n_atoms, in.n_ghosts);
    const int64_t n_halos =
        thread + 1 == n_threads ? in.n_threads - thread : 1;  // with those of threads that do not run
    clear_scattered(space, atoms_and_ghosts(in) + thread * in.halo_capacity, n_halos * in.halo_capacity);
  }
  return RIGHT;
}

// Calls a function for blocks of a thread's rows.
template <class Use> static void for_blocks(int64_t thread, int64_t first, int64_t last, Use use) {
  const int64_t n_blocks = (last - first + BLOCK - 1) / BLOCK;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t start = first + (last - first) * b / n_blocks, end = first + (last - first) * (b + 1) / n_blocks;
    use(Block{thread, start, end - start});
  }
}

// How many atoms a pass is run for: what it computes for the others has no effect on the energies that count.
static int64_t atoms_of_pass(const Input& in, int pass) {
  return in.shells ? in.shells[std::abs(pass - (N_FORWARD_PASSES - 1))] : in.n_atoms;
}

// Has the first thread exchange arrays, while the others wait. Returns whether that went well.
static bool exchange(Call& call, int64_t thread, bool to_owners, int n_arrays, const Rows* arrays) {
  if (n_arrays == 0) return true;
  if (thread == 0 && call.in.exchange(call.in.context, to_owners, n_arrays, arrays)) call.result = EXCHANGE_FAILED;
#pragma omp barrier
  return call.result == RIGHT;
}

// Does for ghosts what has to be done before a pass. Returns whether all exchanges went well.
static bool serve_ghosts(Call& call, int pass, int64_t thread, int64_t n_threads, T* scratch) {
  const Input& in = call.in;
  Rows rows[MOST_EXCHANGED];
  if (!exchange(call, thread, false, rows_to_fetch(pass, call.space, rows), rows)) return false;
  const int64_t first = in.n_atoms + in.n_ghosts * thread / n_threads;
  const int64_t last = in.n_atoms + in.n_ghosts * (thread + 1) / n_threads;
  timed(in, thread, 1 + pass, [&] {
    for_blocks(thread, first, last, [&](const Block& block) {
      run_ghosts(pass, in, call.constants, call.space, call.edges, block, scratch);
    });
  });
#pragma omp barrier
  if (!in.forces_wanted) return true;
  if (!exchange(call, thread, true, rows_to_return(pass, call.space, rows), rows)) return false;
  const int n_cleared = rows_to_clear(pass, call.space, rows);
  for (int k = 0; k < n_cleared; ++k) {
    const int64_t row = rows[k].width * rows[k].size;
    clear((char*)rows[k].numbers + first * row, (last - first) * row);
  }
  return true;
}

static void run(Call& call) {
  const int64_t thread = omp_get_thread_num();
  const Input& in = call.in;
  const int64_t wrong = prepare(call, thread, omp_get_num_threads());
  if (thread == 0) call.result = wrong;
  if (wrong) return;
  const int64_t first = call.space.first_atoms[thread], last = call.space.first_atoms[thread + 1];
  T* scratch = (T*)call.space.scratch + thread * BLOCK * SCRATCH_SIZE;
  for (int pass = 0; pass < (in.forces_wanted ? N_PASSES : N_FORWARD_PASSES); ++pass) {
    if (in.exchange && !serve_ghosts(call, pass, thread, omp_get_num_threads(), scratch)) return;
    timed(in, thread, 1 + pass, [&] {
      for_blocks(thread, first, std::min(last, atoms_of_pass(in, pass)), [&](const Block& block) {
        if (pass == 0) select_pairs(in, call.constants.cutoff_[0], call.space, block, call.space.vectors_);
        run_pass(pass, in, call.constants, call.space, call.edges, block, scratch);
      });
    });
#pragma omp barrier
  }
}

// Times per thread that `busy` has room for.
extern "C" int64_t number_of_parts() { return 1 + N_PASSES; }

// Bytes of the workspace of a call of this size.
extern "C" int64_t workspace_size(const Input* sizes) {
  Space space;
  return lay_out(space, *sizes, nullptr);
}

// Returns 0 if all went well. Otherwise there is no result: a positive number says what is wrong with the indices, see
// `check_edges`, or that an exchange failed; a negative one that a halo needs so many rows.
extern "C" int64_t evaluate(const Input* input, const Constants* constants) {
  Call call = {*input, *constants, {}, {}, RIGHT};
  lay_out(call.space, call.in, call.in.workspace);
  const Space& space = call.space;
  call.edges = {space.rows,
                space.ends,
                space.near,
                space.targets,
                space.species,
                constants->n_species,
                constants->n_intervals,
                (T)(constants->n_intervals / constants->cutoff_[0])};
#pragma omp parallel num_threads(call.in.n_threads)
  run(call);
  if (call.result) return call.result;
  sum_totals(call.in, space);
  return RIGHT;
}
