// What is exchanged between atoms and their ghosts, which other processes have.
#pragma once
#include <cstdint>

// An array of `width` numbers of `size` bytes per row: rows of atoms, then rows of ghosts.
struct Rows {
  void* numbers;
  int64_t width, size;
};

// Copies rows of atoms to their ghosts, or adds rows of ghosts to those of their atoms. Returns 0 if all went well.
typedef int (*Exchange)(void* context, int to_owners, int n_arrays, const Rows* arrays);
