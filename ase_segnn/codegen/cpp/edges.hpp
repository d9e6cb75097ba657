// Loops along edges in any order, of which each thread has a share. Needs the struct Arguments.
#pragma once
#include "threads.hpp"
#include "vectors.hpp"

// Calls turn(arguments, edge, center, neighbor, first row of the thread's sums) for each edge. Returns 0, or 1 if an
// edge joins nodes that are not there; nothing is read or written then.
template <class Turn> static int64_t along_edges(const Arguments& in, Turn turn) {
  for (int64_t e = 0; e < in.n_edges; ++e)
    if ((uint64_t)in.centers[e] >= (uint64_t)in.n_nodes || (uint64_t)in.neighbors[e] >= (uint64_t)in.n_nodes) return 1;
#pragma omp parallel num_threads(in.n_threads)
  {
    const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
    const int64_t last = in.n_edges * (thread + 1) / n_threads;
    for (int64_t e = in.n_edges * thread / n_threads; e < last; ++e)
      turn(in, e, in.centers[e], in.neighbors[e], in.n_nodes * thread);
  }
  return 0;
}
