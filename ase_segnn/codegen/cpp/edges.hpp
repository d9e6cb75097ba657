// What loops along edges know.
#pragma once
#include <cstdint>

// Those of atom i are from rows[i] to ends[i]. Of each: the neighbor, and the row to which it adds.
struct Edges {
  const int64_t *rows, *ends, *neighbors, *targets, *species;
  int64_t n_species, n_intervals;
  T per_length;
};
