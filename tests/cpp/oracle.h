// What kernels are compared with: the ops as plain loops, each written as its formula, in one of two arithmetics; and the rule.
#pragma once

#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

inline float to_float(float value) { return value; }
inline float to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
// To the nearest, ties to even.
template <class T>
T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    return static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
}

// The oracle: float64.
struct Exact {
  using Number = double;
  static double round(double x) { return x; }
};
// What public code computes in the tensors' own type: float32 inside a step, whose results are rounded to T.
template <class T>
struct Plain {
  using Number = float;
  static float round(float x) { return to_float(from_float<T>(x)); }
};

template <class A>
using Numbers = std::vector<typename A::Number>;

template <class A, class T>
Numbers<A> numbers(const Tensor<T> &tensor) {
  Numbers<A> all;
  for (T value : tensor.values) all.push_back(to_float(value));
  return all;
}

// max|out - exact| <= 2 max|plain - exact| + atol: one rounding of the largest number to T, and the random walk of the float32
// roundings in sums of `terms` products. The same rule as in tests/rule.py.
template <class T>
void check_rule(const char *what, const Numbers<Exact> &out, const std::vector<float> &plain, const Numbers<Exact> &exact,
                int64_t terms) {
  double error = 0.0, allowed = 0.0, largest = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::fabs(out[i] - exact[i]);
    error = difference <= error ? error : difference;  // a NaN stays
    allowed = std::max(allowed, std::fabs(plain[i] - exact[i]));
    largest = std::max(largest, std::fabs(exact[i]));
  }
  const double half_ulp = sizeof(T) == 4 ? 0x1p-24 : 0x1p-8;
  const double atol = (half_ulp + std::sqrt(2.0 * static_cast<double>(terms)) * 0x1p-24) * largest;
  if (!(out.size() == exact.size() && error <= 2 * allowed + atol)) {
    std::printf("%s, %s: error %.3g, plain code's %.3g, atol %.3g\n", what, sizeof(T) == 4 ? "float32" : "bfloat16", error,
                allowed, atol);
    ++failures;
  }
}

struct Shape {
  int64_t frames, tokens, heads, dim, pages, page_tokens, pairs;
};

// Pairs (2i, 2i + 1) of x by (cos, sin) pairs.
template <class A>
void rotate(typename A::Number *x, const typename A::Number *cos_sin, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const typename A::Number even = x[2 * i], odd = x[2 * i + 1], cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
    x[2 * i] = A::round(even * cos - odd * sin);
    x[2 * i + 1] = A::round(even * sin + odd * cos);
  }
}

template <class A>
struct Attended {
  Numbers<A> out, mass;
};

template <class A>
Attended<A> plain_attention(const Shape &s, const Numbers<A> &q, const Numbers<A> &k, const Numbers<A> &v,
                            const Numbers<A> &rotation, const Numbers<A> &bias) {
  using N = typename A::Number;
  Attended<A> y{Numbers<A>(q.size()), Numbers<A>(s.pages * s.frames * s.heads)};
  const N scale = 1 / std::sqrt(static_cast<N>(s.dim));
  for (int64_t row = 0; row < s.frames * s.tokens * s.heads; ++row) {
    const int64_t h = row % s.heads, f = row / s.heads / s.tokens;
    Numbers<A> weights;
    N max = -INFINITY, sum = 0;
    for (int64_t p = 0; p < s.pages; ++p) {
      Numbers<A> query(&q[row * s.dim], &q[row * s.dim] + s.dim);
      rotate<A>(query.data(), &rotation[((p * s.frames + f) * s.heads + h) * s.pairs * 2], s.pairs);
      for (int64_t t = 0; t < s.page_tokens; ++t) {
        const N *key = &k[((p * s.page_tokens + t) * s.heads + h) * s.dim];
        N score = 0;
        for (int64_t c = 0; c < s.dim; ++c) score += query[c] * key[c];
        weights.push_back(score * scale + bias[p * s.heads + h]);
        max = std::max(max, weights.back());
      }
    }
    if (max == -INFINITY) continue;  // every page is left out
    for (N &weight : weights) sum += weight = std::exp(weight - max);
    Numbers<A> out(s.dim);
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t p = static_cast<int64_t>(i) / s.page_tokens;
      y.mass[(p * s.frames + f) * s.heads + h] += weights[i] / sum / static_cast<N>(s.tokens);
      const N *value = &v[(static_cast<int64_t>(i) * s.heads + h) * s.dim];
      for (int64_t c = 0; c < s.dim; ++c) out[c] += A::round(weights[i]) * value[c];
    }
    for (int64_t c = 0; c < s.dim; ++c) y.out[row * s.dim + c] = A::round(out[c] / sum);
  }
  return y;
}

// RMSNorm over the heads of a token, weight, and rotation from channel `first` on; x [rows][heads][dim], the rotation of a row
// is that of its token.
template <class A>
Numbers<A> plain_projection(Numbers<A> x, const Numbers<A> &weight, const Numbers<A> &rotation, int64_t tokens, int64_t heads,
                            int64_t dim, int64_t pairs, int64_t first, double eps) {
  using N = typename A::Number;
  const int64_t channels = heads * dim;
  for (int64_t row = 0; row < static_cast<int64_t>(x.size()) / channels; ++row) {
    N squares = 0;
    for (int64_t c = 0; c < channels; ++c) squares += x[row * channels + c] * x[row * channels + c];
    const N inverse = 1 / std::sqrt(squares / static_cast<N>(channels) + static_cast<N>(eps));
    for (int64_t c = 0; c < channels; ++c) {
      N &value = x[row * channels + c];
      value = A::round(A::round(value * inverse) * weight[c]);
    }
    for (int64_t h = 0; h < heads; ++h) {
      rotate<A>(&x[row * channels + h * dim + first], &rotation[row % tokens * pairs * 2], pairs);
    }
  }
  return x;
}

// LayerNorm over the channels, scale [channels] and shift [rows of it][channels].
template <class A>
Numbers<A> plain_norm(Numbers<A> x, const Numbers<A> &scale, const Numbers<A> &shift, double eps) {
  using N = typename A::Number;
  const auto channels = static_cast<int64_t>(scale.size()), rows = static_cast<int64_t>(x.size()) / channels;
  const int64_t frames = static_cast<int64_t>(shift.size()) / channels;
  for (int64_t row = 0; row < rows; ++row) {
    N *values = &x[row * channels], mean = 0, variance = 0;
    for (int64_t c = 0; c < channels; ++c) mean += values[c] / static_cast<N>(channels);
    for (int64_t c = 0; c < channels; ++c) variance += (values[c] - mean) * (values[c] - mean) / static_cast<N>(channels);
    const N inverse = 1 / std::sqrt(variance + static_cast<N>(eps));
    const N *add = &shift[row / (rows / frames) * channels];
    for (int64_t c = 0; c < channels; ++c) {
      values[c] = A::round(A::round(A::round((values[c] - mean) * inverse) * A::round(scale[c])) + A::round(add[c]));
    }
  }
  return x;
}

template <class A>
Numbers<A> plain_gelu(Numbers<A> x) {
  using N = typename A::Number;
  for (N &value : x) {
    const N inner = std::sqrt(static_cast<N>(2 / M_PI)) * (value + static_cast<N>(0.044715) * value * value * value);
    value = A::round(value / 2 * (1 + std::tanh(inner)));
  }
  return x;
}

// Of pixels of `gamma`'s size, with SiLU.
template <class A>
Numbers<A> plain_channel_norm(Numbers<A> x, const Numbers<A> &gamma) {
  using N = typename A::Number;
  const auto channels = static_cast<int64_t>(gamma.size());
  for (int64_t pixel = 0; pixel < static_cast<int64_t>(x.size()) / channels; ++pixel) {
    N *values = &x[pixel * channels], squares = 0;
    for (int64_t c = 0; c < channels; ++c) squares += values[c] * values[c];
    const N length = std::max(std::sqrt(squares), static_cast<N>(1e-12)), root = std::sqrt(static_cast<N>(channels));
    for (int64_t c = 0; c < channels; ++c) {
      const N y = A::round(A::round(A::round(values[c] / length) * root) * A::round(gamma[c]));
      values[c] = A::round(y / (1 + std::exp(-y)));
    }
  }
  return x;
}
