// Vectors, products and splines for ctypes. The test puts the type T and the number CHANNELS before this.
#include "products.hpp"
#include "splines.hpp"
#include "vectors.hpp"

enum { STRIDE = 2 * CHANNELS };

extern "C" int64_t lanes() { return LANES; }

// n is a multiple of LANES in all of these
extern "C" void exponentials(const T* x, T* y, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) store(y + k, exponential(load(x + k)));
}

extern "C" void sigmoids(const T* x, T* y, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) store(y + k, sigmoid(load(x + k)));
}

extern "C" void sums(const T* x, T* y, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) y[k / LANES] = sum(load(x + k));
}

extern "C" void add_all(const T* x, T* y, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) add_to(y + k, load(x + k));
}

extern "C" void product(int64_t m, int64_t k, int64_t n, const T* a, const T* b, T* c, int64_t add) {
  multiply(m, (int)k, (int)n, a, b, c, add != 0);
}

// Values and slopes (n, STRIDE) of all functions of a table at n distances.
extern "C" void splines_at(const T* table, int64_t n_intervals, double per_length, const T* distances, int64_t n,
                           T* values, T* slopes) {
  for (int64_t k = 0; k < n; ++k) {
    const Splines<STRIDE> splines(table, n_intervals, (T)per_length, distances[k]);
    for (int place = 0; place < STRIDE; place += LANES) {
      store(values + k * STRIDE + place, splines.value(place));
      store(slopes + k * STRIDE + place, splines.slope(place));
    }
  }
}
