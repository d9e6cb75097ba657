// Threads' shares of atoms and pairs for ctypes, one thread after another. The test puts T, CHANNELS, the structs Input
// and Constants, and SMALLEST_VOLUME before this.
#include "frame.hpp"

// A frame in memory that starts at zero; tells the size where there is none.
extern "C" int64_t lay_out(const Input* in, char* memory, Frame* frame) {
  Cutter cutter = {memory};
  frame->lay_out(cutter, *in);
  return cutter.next - memory;
}

extern "C" int64_t size_of_frame() { return sizeof(Frame); }

// Returns the first thing that a thread finds wrong, 0 if nothing is.
extern "C" int64_t check(const Input* in, const Constants* constants, const Frame* frame) {
  int64_t wrong = RIGHT;
  for (int64_t thread = 0; thread < in->n_threads && !wrong; ++thread)
    wrong = check_edges(*in, *frame, thread, in->n_threads);
  for (int64_t thread = 0; thread < in->n_threads && !wrong; ++thread)
    wrong = check_atoms(*in, *constants, *frame, thread, in->n_threads);
  return wrong;
}

extern "C" void rows_of(const Frame* frame, int64_t n, int64_t* rows) { std::copy_n(frame->rows, n, rows); }

extern "C" void share(const Input* in, Frame* frame, int64_t* first_atoms) {
  for (int64_t thread = 0; thread <= in->n_threads; ++thread)
    frame->first_atoms[thread] = first_atoms[thread] = first_atom(*in, *frame, thread, in->n_threads);
}

// Lists the halo of each thread: how many atoms are in it, and those for which there is room. One thread alone has
// none.
extern "C" void halos(const Input* in, Frame* frame, int64_t* n_halo, int64_t* atoms) {
  for (int64_t thread = 0; thread < in->n_threads; ++thread)
    frame->n_halo[thread] = n_halo[thread] =
        in->n_threads == 1 ? 0
                           : list_halo(*in, *frame, thread, frame->first_atoms[thread], frame->first_atoms[thread + 1]);
  std::copy_n(frame->halo_atoms, in->n_threads * in->halo_capacity, atoms);
}

// Vectors, neighbors and rows to add to of the pairs within the cutoff, and where those of each atom end.
extern "C" void pairs(const Input* in, double cutoff, const Frame* frame, double* vectors, int64_t* neighbors,
                      int64_t* targets, int64_t* ends) {
  for (int64_t thread = 0; thread < in->n_threads; ++thread) {
    const int64_t first = frame->first_atoms[thread], last = frame->first_atoms[thread + 1];
    select_pairs(*in, cutoff, *frame, {thread, first, last - first}, vectors);
  }
  std::copy_n(frame->near, in->n_edges, neighbors);
  std::copy_n(frame->targets, in->n_edges, targets);
  std::copy_n(frame->ends, in->n_atoms, ends);
}

// Gathers the sums of all atoms, `step` atoms at a time.
extern "C" void gather_all(const Input* in, const Frame* frame, int64_t step, T* array, int64_t stride) {
  for (int64_t first = 0; first < in->n_atoms; first += step)
    gather(*in, *frame, {0, first, std::min(step, in->n_atoms - first)}, array, stride);
}
