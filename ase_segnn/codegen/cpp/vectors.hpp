// Vectors of numbers of one precision, and functions of them. Needs the type T and the number CHANNELS.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// A vector fills a register, never more: compilers split longer ones through memory. It holds no more numbers than the
// largest power of two that divides the channels.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
enum { FIT = VECTOR_BYTES / sizeof(T), DIVISOR = CHANNELS & -CHANNELS, LANES = FIT < DIVISOR ? FIT : DIVISOR };

// What the exponential of a precision needs: where it ends, the number whose addition rounds to an integer, log 2 in
// two parts, the layout of a number, and the highest power of the series.
template <class Real> struct Exponential;
template <> struct Exponential<float> {
  typedef int32_t Integer;
  static constexpr float LOWEST = -87, HIGHEST = 88, ROUNDING = 12582912;  // 1.5 * 2^23
  static constexpr float LOG2_HIGH = 0.693359375f, LOG2_LOW = -2.12194440e-4f;
  static constexpr int32_t BIAS = 127, MANTISSA = 23;
  enum { ORDER = 7 };
};
template <> struct Exponential<double> {
  typedef int64_t Integer;
  static constexpr double LOWEST = -708, HIGHEST = 709, ROUNDING = 6755399441055744;  // 1.5 * 2^52
  static constexpr double LOG2_HIGH = 0.6931471803691238, LOG2_LOW = 1.9082149292705877e-10;
  static constexpr int64_t BIAS = 1023, MANTISSA = 52;
  enum { ORDER = 13 };
};

typedef T V __attribute__((vector_size(LANES * sizeof(T)), may_alias));
typedef Exponential<T>::Integer VI __attribute__((vector_size(LANES * sizeof(T))));

static inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
static inline void add_to(T* p, V v) { store(p, load(p) + v); }
template <class X> static inline void clear(X* p, int64_t n) {
  for (int64_t k = 0; k < n; ++k) p[k] = 0;
}

// sum of N numbers, the upper half onto the lower one until one is left
template <int N> struct Sum {
  typedef T Whole __attribute__((vector_size(N * sizeof(T))));
  typedef T Half __attribute__((vector_size(N / 2 * sizeof(T))));
  static inline T of(Whole v) {
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return Sum<N / 2>::of(low + high);
  }
};
template <> struct Sum<2> {
  typedef T Whole __attribute__((vector_size(2 * sizeof(T))));
  static inline T of(Whole v) { return v[0] + v[1]; }
};
static inline T sum(V v) { return Sum<LANES>::of(v); }

template <int ORDER> constexpr T inverse_factorial() { return inverse_factorial<ORDER - 1>() / ORDER; }
template <> constexpr T inverse_factorial<0>() { return 1; }
// sum of r^k / k! from k = K on, over r^K
template <int K, int ORDER> static inline V series(V r) {
  if constexpr (K == ORDER)
    return V{} + inverse_factorial<K>();
  else
    return series<K + 1, ORDER>(r) * r + inverse_factorial<K>();
}
// exp by x = n log 2 + r, |r| <= log(2)/2, and the power series of exp(r)
static inline V exponential(V x) {
  typedef Exponential<T> E;
  x = x < E::LOWEST ? V{} + E::LOWEST : x;
  x = x > E::HIGHEST ? V{} + E::HIGHEST : x;
  const V n = (x * T(1.4426950408889634) + E::ROUNDING) - E::ROUNDING;
  const V r = (x - n * E::LOG2_HIGH) - n * E::LOG2_LOW;
  const VI power = (__builtin_convertvector(n, VI) + E::BIAS) << E::MANTISSA;
  V scale;
  std::memcpy(&scale, &power, sizeof scale);
  return series<0, E::ORDER>(r) * scale;
}
static inline V sigmoid(V x) { return T(1) / (T(1) + exponential(-x)); }

static inline V square_root(V x) {
  for (int k = 0; k < LANES; k++) x[k] = std::sqrt(x[k]);
  return x;
}
static inline float square_root(float x) { return std::sqrt(x); }
static inline double square_root(double x) { return std::sqrt(x); }
