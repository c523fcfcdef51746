// A minimal framework for the C++ tests: a check that reports and counts, and tensor views over vectors.
#pragma once

#include "lolrt/lolrt.h"

#include <cstdio>
#include <initializer_list>
#include <string>
#include <vector>

inline int failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                               \
    }                                                                           \
  } while (false)

// A call that must succeed.
#define CHECK_OK(call)                                                               \
  do {                                                                               \
    if ((call) != LOLRT_OK) {                                                        \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, lolrt_last_error()); \
      ++failures;                                                                    \
    }                                                                                \
  } while (false)

// A call that must fail with a status and a text that contains `text`.
#define CHECK_FAILS(call, status, text)                                                                  \
  do {                                                                                                   \
    const lolrt_status got = (call);                                                                     \
    if (got != (status) || std::string(lolrt_last_error()).find(text) == std::string::npos) {            \
      std::printf("%s:%d: %s: status %d, \"%s\"\n", __FILE__, __LINE__, #call, got, lolrt_last_error()); \
      ++failures;                                                                                        \
    }                                                                                                    \
  } while (false)

inline lolrt_dtype float32() { return {LOLRT_CODE_FLOAT, 32, 1}; }
inline lolrt_dtype bfloat16() { return {LOLRT_CODE_BFLOAT, 16, 1}; }
template <class T>
lolrt_dtype dtype_of();
template <>
inline lolrt_dtype dtype_of<float>() {
  return float32();
}
template <>
inline lolrt_dtype dtype_of<uint16_t>() {  // the bits of a bfloat16
  return bfloat16();
}
template <>
inline lolrt_dtype dtype_of<int8_t>() {
  return {LOLRT_CODE_INT, 8, 1};
}
template <>
inline lolrt_dtype dtype_of<uint8_t>() {
  return {LOLRT_CODE_UINT, 8, 1};
}
template <>
inline lolrt_dtype dtype_of<int32_t>() {
  return {LOLRT_CODE_INT, 32, 1};
}
template <>
inline lolrt_dtype dtype_of<int64_t>() {
  return {LOLRT_CODE_INT, 64, 1};
}
template <>
inline lolrt_dtype dtype_of<uint64_t>() {
  return {LOLRT_CODE_UINT, 64, 1};
}

// Owns exactly its elements, so that the address sanitizer sees any access beyond them.
template <class T>
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<T> values;
  lolrt_tensor view{};

  Tensor(std::initializer_list<int64_t> sizes, T value = T()) : shape(sizes) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    values.assign(static_cast<size_t>(count), value);
    view = {values.data(), {LOLRT_DEVICE_CPU, 0}, static_cast<int32_t>(shape.size()), dtype_of<T>(), shape.data(), nullptr, 0};
  }
  Tensor(const Tensor &) = delete;
  Tensor &operator=(const Tensor &) = delete;

  const lolrt_tensor *operator&() const { return &view; }
  T &operator[](int64_t i) { return values[static_cast<size_t>(i)]; }
};

inline int report(const char *name) {
  std::printf("%s: %s\n", name, failures ? "FAILED" : "ok");
  return failures != 0;
}
