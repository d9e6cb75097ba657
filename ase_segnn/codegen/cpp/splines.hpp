// Quintic splines on equal intervals, see `ase_segnn.codegen.spline`.
#pragma once
#include "vectors.hpp"

// Pieces of the uniform B-spline of degree five: coefficients of 1, u, ..., u^5, times 120.
static constexpr T PIECES[6][6] = {{1, -5, 10, -10, 5, -1},    {26, -50, 20, 20, -20, 5}, {66, 0, -60, 0, 30, -10},
                                   {26, 50, 20, -20, -20, 10}, {1, 5, 10, 10, 5, -5},     {0, 0, 0, 0, 0, 1}};

// All functions of a table (knots, STRIDE) at one distance, given in intervals; the last interval goes on for longer
// distances.
template <int STRIDE> struct Splines {
  const T *start, *knot;
  T values[6], slopes[6];  // of the pieces

  Splines(const T* table, int64_t n_intervals, T per_length, T distance) {
    start = table;
    T x = distance * per_length;
    if (!(x < n_intervals)) x = n_intervals;  // at the cutoff, or not a number
    int64_t interval = (int64_t)x;
    if (interval > n_intervals - 1) interval = n_intervals - 1;
    knot = table + interval * STRIDE;
    const T u = x - (T)interval;
    for (int k = 0; k < 6; ++k) {
      const T* p = PIECES[k];
      values[k] = (p[0] + u * (p[1] + u * (p[2] + u * (p[3] + u * (p[4] + u * p[5]))))) / 120;
      slopes[k] = (p[1] + u * (2 * p[2] + u * (3 * p[3] + u * (4 * p[4] + u * 5 * p[5])))) * (per_length / 120);
    }
  }
  V value(int place) const { return sum(values, knot + place); }
  V slope(int place) const { return sum(slopes, knot + place); }
  // Adds numbers times the pieces to the gradients of coefficients, in an array like the table.
  void spread(const T* pieces, T* gradients, int place, V numbers) const {
    T* p = gradients + (knot - start) + place;
    for (int k = 0; k < 6; ++k) add_to(p + k * STRIDE, pieces[k] * numbers);
  }

 private:
  static V sum(const T* pieces, const T* p) {
    return pieces[0] * load(p) + pieces[1] * load(p + STRIDE) + pieces[2] * load(p + 2 * STRIDE) +
           pieces[3] * load(p + 3 * STRIDE) + pieces[4] * load(p + 4 * STRIDE) + pieces[5] * load(p + 5 * STRIDE);
  }
};
