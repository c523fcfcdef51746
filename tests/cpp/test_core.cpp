// Philox, phases, noise, pools and windows through the C ABI.
#include "check.h"
#include "core/philox.h"

#include <array>
#include <cmath>

namespace {

// Known answers of the reference implementation (Random123, kat_vectors).
void test_philox() {
  using Words = std::array<uint32_t, 4>;
  CHECK((lolrt::philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((lolrt::philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((lolrt::philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

void test_phases() {
  const double radians[] = {0.0, -0.0, 1.0, -1.0, 1e-300, 0x1.921fb54442d18p+0, 0x1p32};
  uint64_t turns[7];
  CHECK_OK(lolrt_phase_increments(radians, turns, 7));
  CHECK(turns[0] == 0 && turns[1] == 0 && turns[4] == 0);
  CHECK(turns[2] == 2935890503282001226u && turns[3] == 0 - turns[2]);  // 2^64 / (2 pi)
  CHECK(turns[5] == (1ull << 62) - 180);                                // fp64's pi / 2 is 6e-17 short of a quarter turn
  const double wrong[] = {1.0, INFINITY};
  turns[0] = 7;
  CHECK_FAILS(lolrt_phase_increments(wrong, turns, 2), LOLRT_INVALID_ARGUMENT, "radians_per_frame[1]");
  CHECK(turns[0] == 7);
  CHECK_OK(lolrt_phase_increments(nullptr, nullptr, 0));

  Tensor<uint64_t> increments({1, 3});
  increments[0] = 1ull << 61;  // an eighth of a turn
  increments[1] = turns[2];
  Tensor<int64_t> offsets({2, 1});
  offsets[1] = -2;
  Tensor<float> table({2, 1, 1, 3, 2}, NAN);
  CHECK_OK(lolrt_rotation_table(&increments, &offsets, &table));
  CHECK(table[0] == 1.0f && table[1] == 0.0f && table[5] == 0.0f);
  CHECK(std::fabs(table[6]) < 1e-7f && table[7] == -1.0f);
  CHECK(table[8] == static_cast<float>(std::cos(2.0)) && table[9] == static_cast<float>(-std::sin(2.0)));
}

// Sizes whose product is 2^64 + 5: what a vector of 5 seems to be where it overflows.
int64_t kFiveInAll[] = {3, 0x5555555555555557};

void test_noise() {
  Tensor<float> whole({3, 7}), part({5});
  CHECK_OK(lolrt_normal(9, -5, 2, &whole));
  CHECK_OK(lolrt_normal(9, -5, 2, &part));
  for (int i = 0; i < 5; ++i) CHECK(whole[i] == part[i]);
  lolrt_tensor nothing = part.view;
  nothing.ndim = 0;
  CHECK_FAILS(lolrt_normal(9, 0, 0, &nothing), LOLRT_INVALID_ARGUMENT, "normal: out");
  CHECK_FAILS(lolrt_normal(9, 0, 0, nullptr), LOLRT_INVALID_ARGUMENT, "normal: out");
  lolrt_tensor shapeless = part.view;
  shapeless.shape = nullptr;
  CHECK_FAILS(lolrt_normal(9, 0, 0, &shapeless), LOLRT_INVALID_ARGUMENT, "normal: out");
  part[0] = 7.0f;
  lolrt_tensor huge = part.view;
  huge.ndim = 2;
  huge.shape = kFiveInAll;
  CHECK_FAILS(lolrt_normal(9, 0, 0, &huge), LOLRT_UNSUPPORTED, "more than 2^34 elements");
  CHECK(part[0] == 7.0f);
}

void test_windows() {
  lolrt_pool *pool = nullptr;
  lolrt_window *window = nullptr;
  CHECK_FAILS(lolrt_pool_create(0, &pool), LOLRT_INVALID_ARGUMENT, "pages is 0");
  CHECK_OK(lolrt_pool_create(12, &pool));
  CHECK_FAILS(lolrt_window_create(pool, -1, 9, &window), LOLRT_INVALID_ARGUMENT, "sink_frames is -1");
  CHECK_OK(lolrt_window_create(pool, 3, 9, &window));
  for (int64_t chunk = 0; chunk < 100; ++chunk) CHECK_OK(lolrt_window_advance(window, 1000 + 3 * chunk, 3));
  CHECK(lolrt_window_size(window) == 12 && lolrt_pool_free_pages(pool) == 0);
  int32_t pages[12];
  int64_t frames[12];
  CHECK_OK(lolrt_window_read(window, pages, frames, 12));
  CHECK(frames[0] == 1000 && frames[2] == 1002 && frames[3] == 1000 + 300 - 9 && frames[11] == 1000 + 299);
  CHECK_FAILS(lolrt_window_read(window, pages, frames, 11), LOLRT_INVALID_ARGUMENT, "holds 12");
  CHECK_FAILS(lolrt_window_advance(window, 0, 3), LOLRT_INVALID_ARGUMENT, "expected 1300");
  int32_t page = -1;
  CHECK_FAILS(lolrt_pool_acquire(pool, &page), LOLRT_OUT_OF_MEMORY, "all 12 pages");
  lolrt_window *second = nullptr;
  CHECK_OK(lolrt_window_create(pool, 1, 1, &second));
  CHECK_FAILS(lolrt_window_advance(second, 0, 1), LOLRT_OUT_OF_MEMORY, "pool of 12");
  CHECK(lolrt_window_size(second) == 0);
  lolrt_window_destroy(second);
  CHECK_OK(lolrt_pool_retain(pool, pages[5]));
  lolrt_window_destroy(window);
  CHECK(lolrt_pool_free_pages(pool) == 11);
  CHECK_OK(lolrt_pool_release(pool, pages[5]));
  CHECK_FAILS(lolrt_pool_release(pool, pages[5]), LOLRT_INVALID_ARGUMENT, "is not taken");
  CHECK_FAILS(lolrt_pool_retain(pool, 12), LOLRT_INVALID_ARGUMENT, "page 12 of 12");
  CHECK_FAILS(lolrt_pool_retain(nullptr, 0), LOLRT_INVALID_ARGUMENT, "pool is NULL");
  CHECK(lolrt_pool_free_pages(pool) == 12);
  lolrt_pool_destroy(pool);
  lolrt_pool_destroy(nullptr);
  lolrt_window_destroy(nullptr);
}

// Any other output than one whose every element has a place of its own is refused.
void test_outputs() {
  Tensor<float> x({16});
  struct Case {
    bool apart;
    int64_t shape[3], strides[3];
  };
  const Case cases[] = {
      {true, {4, 4, 1}, {4, 1, 1}},          {true, {4, 4, 1}, {1, 4, 1}},          {true, {2, 4, 2}, {8, 2, 1}},
      {true, {2, 3, 2}, {7, 2, 1}},          {true, {2, 4, 1}, {7, 2, 0}},          {true, {1, 4, 1}, {0, 1, 0}},
      {false, {4, 4, 1}, {2, 1, 1}},         {false, {4, 4, 1}, {0, 1, 1}},         {false, {4, 4, 1}, {1, 1, 1}},
      {false, {4, 4, 1}, {1, 3, 1}},         {false, {4, 4, 1}, {-2, 1, 1}},        {false, {2, 3, 2}, {5, 2, 1}},
      {false, {3, 2, 1}, {INT64_MAX, 1, 1}}, {false, {2, 2, 1}, {INT64_MIN, 1, 1}},
  };
  for (const Case &each : cases) {
    lolrt_tensor out = x.view;
    out.ndim = 3;
    out.shape = const_cast<int64_t *>(each.shape);
    out.strides = const_cast<int64_t *>(each.strides);
    const lolrt_gelu_desc desc{sizeof desc, &out, nullptr};
    if (each.apart) {
      CHECK_OK(lolrt_gelu(&desc));
    } else {
      CHECK_FAILS(lolrt_gelu(&desc), LOLRT_INVALID_ARGUMENT, "gelu: x is written, but its elements share memory");
    }
  }
  lolrt_tensor huge = x.view;
  int64_t shape[] = {kFiveInAll[0], kFiveInAll[1], 1};
  huge.ndim = 3;
  huge.shape = shape;
  const lolrt_gelu_desc desc{sizeof desc, &huge, nullptr};
  CHECK_FAILS(lolrt_gelu(&desc), LOLRT_INVALID_ARGUMENT, "gelu: x: no memory holds a tensor of shape");
}

void test_interface() {
  CHECK(lolrt_abi_version() == LOLRT_ABI_VERSION);
  CHECK(std::string(lolrt_isas()).find("scalar") != std::string::npos);
  CHECK_FAILS(lolrt_set_isa("z80"), LOLRT_INVALID_ARGUMENT, "\"z80\"");
  CHECK_FAILS(lolrt_set_isa(nullptr), LOLRT_INVALID_ARGUMENT, "scalar");
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, bfloat16(), 33, 2, 10, &elements));
  CHECK(elements == 2 * 48 * 10 + 2 * 34 * 16);  // 33 keys padded to 48 and to 34, 10 channels of V to 16
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, float32(), 33, 2, 10, &elements));
  CHECK(elements == 2 * 48 * 10 + 2 * 33 * 16);
  CHECK_FAILS(lolrt_page_elements(LOLRT_DEVICE_CPU, {LOLRT_CODE_FLOAT, 16, 1}, 1, 1, 2, &elements), LOLRT_INVALID_ARGUMENT,
              "float16");
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CUDA, bfloat16(), 33, 2, 10, &elements));
  CHECK(elements == 672 + 672);  // 2 * 33 * 10 = 660 elements each, rounded up to 64 bytes
  CHECK_FAILS(lolrt_page_elements(LOLRT_DEVICE_CUDA, float32(), 1, 1, 2, &elements), LOLRT_INVALID_ARGUMENT,
              "bfloat16 or float16");
  CHECK_FAILS(lolrt_page_elements(3, float32(), 1, 1, 2, &elements), LOLRT_UNSUPPORTED, "device_type is 3");
  CHECK_FAILS(lolrt_page_elements(LOLRT_DEVICE_CPU, float32(), 1, 1, 3, &elements), LOLRT_UNSUPPORTED, "dim is 3");
  CHECK_FAILS(lolrt_frame_attention(nullptr), LOLRT_INVALID_ARGUMENT, "NULL");
  lolrt_kv_write_desc desc{};
  CHECK_FAILS(lolrt_kv_write(&desc), LOLRT_INVALID_ARGUMENT, "struct_size");
}

}  // namespace

int main() {
  test_philox();
  test_phases();
  test_noise();
  test_windows();
  test_outputs();
  test_interface();
  return report("core");
}
