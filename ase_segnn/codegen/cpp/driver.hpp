// Runs the passes of a program on all threads. Needs the struct Space and the functions run_pass,
// clear_scattered and sum_totals, which are generated.
#pragma once
#include <chrono>

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
  if (in.forces_wanted && !in.workspace_is_clean) {
    clear_scattered(space, first, last - first);
    const int64_t n_halos =
        thread + 1 == n_threads ? in.n_threads - thread : 1;  // with those of threads that do not run
    clear_scattered(space, in.n_atoms + thread * in.halo_capacity, n_halos * in.halo_capacity);
  }
  return RIGHT;
}

static void run(Call& call) {
  const int64_t thread = omp_get_thread_num();
  const Input& in = call.in;
  const int64_t wrong = prepare(call, thread, omp_get_num_threads());
  if (thread == 0) call.result = wrong;
  if (wrong) return;
  const int64_t first = call.space.first_atoms[thread], last = call.space.first_atoms[thread + 1];
  const int64_t n_blocks = (last - first + BLOCK - 1) / BLOCK;
  T* scratch = (T*)call.space.scratch + thread * BLOCK * SCRATCH_SIZE;
  for (int pass = 0; pass < (in.forces_wanted ? N_PASSES : N_FORWARD_PASSES); ++pass) {
    timed(in, thread, 1 + pass, [&] {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const int64_t start = first + (last - first) * b / n_blocks, end = first + (last - first) * (b + 1) / n_blocks;
        const Block block = {thread, start, end - start};
        if (pass == 0) select_pairs(in, call.constants.cutoff_[0], call.space, block, call.space.vectors_);
        run_pass(pass, in, call.constants, call.space, call.edges, block, scratch);
      }
    });
#pragma omp barrier
  }
}

// Times per thread that `busy` has room for.
extern "C" int64_t number_of_parts() { return 1 + N_PASSES; }

// Bytes of the workspace of a call of this size.
extern "C" int64_t workspace_size(int64_t n_atoms, int64_t n_edges, int64_t n_threads, int64_t forces_wanted,
                                  int64_t halo_capacity) {
  Input in = {};
  in.n_atoms = n_atoms;
  in.n_edges = n_edges;
  in.n_threads = n_threads;
  in.forces_wanted = forces_wanted;
  in.halo_capacity = halo_capacity;
  Space space;
  return lay_out(space, in, nullptr);
}

// Returns 0 if all went well. Otherwise nothing was computed: a positive number says what is wrong with the indices,
// see `check_edges`; a negative one that a halo needs so many rows.
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
