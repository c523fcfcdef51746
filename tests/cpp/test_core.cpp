// Philox, phases, noise, pools and windows through the C ABI.
#include "check.h"
#include "core/philox.h"

#include <algorithm>
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

// Sizes whose product is 2^64 + 5, which overflows to that of a vector of 5.
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

// An output is refused unless each element has its own place.
void test_outputs() {
  Tensor<float> x({16});
  struct Case {
    bool apart;
    int64_t shape[3], strides[3];
  };
  const Case cases[] = {
      {true, {4, 4, 1}, {4, 1, 1}},  {true, {4, 4, 1}, {1, 4, 1}},  {true, {2, 4, 2}, {8, 2, 1}},   {true, {2, 3, 2}, {7, 2, 1}},
      {true, {2, 4, 1}, {7, 2, 0}},  {true, {1, 4, 1}, {0, 1, 0}},  {false, {4, 4, 1}, {2, 1, 1}},  {false, {4, 4, 1}, {0, 1, 1}},
      {false, {4, 4, 1}, {1, 1, 1}}, {false, {4, 4, 1}, {1, 3, 1}}, {false, {4, 4, 1}, {-2, 1, 1}}, {false, {2, 3, 2}, {5, 2, 1}},
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

// Sizes, strides and numbers with which a check itself could overflow; the sanitizer would report that.
void test_extremes() {
  Tensor<float> x({1, 4, 8});
  const auto gelu_fails = [](const lolrt_tensor &tensor, lolrt_status status, const char *text) {
    const lolrt_gelu_desc desc{sizeof desc, &tensor, nullptr};
    CHECK_FAILS(lolrt_gelu(&desc), status, text);
  };
  lolrt_tensor nowhere = x.view;
  nowhere.data = nullptr;
  nowhere.byte_offset = 12;
  gelu_fails(nowhere, LOLRT_INVALID_ARGUMENT, "gelu: x: its data pointer is NULL");
  lolrt_tensor deep = x.view;
  for (int32_t ndim : {INT32_MAX, 65, -1, INT32_MIN}) {
    deep.ndim = ndim;
    gelu_fails(deep, LOLRT_INVALID_ARGUMENT, ndim > 0 ? " dimensions" : "gelu: x: expected");
  }
  for (int64_t stride : {INT64_MAX, INT64_MIN, INT64_MAX / 8, INT64_MIN / 8}) {
    int64_t shape[] = {3, 1, 8}, strides[] = {stride, 8, 1};
    lolrt_tensor far = x.view;
    far.shape = shape;
    far.strides = strides;
    gelu_fails(far, LOLRT_INVALID_ARGUMENT, "gelu: x: no memory holds a tensor of shape [3, 1, 8] with strides [");
  }

  Tensor<float> image({1, 2, 2, 8}), gamma({8});
  for (int64_t size : {INT64_MIN, INT64_MIN + 3, int64_t{-1}, int64_t{0}, INT64_MAX, INT64_MAX - 1}) {
    int64_t shape[] = {1, size, 2, 8};
    lolrt_tensor out = image.view;
    out.shape = shape;
    const lolrt_channel_norm_desc desc{sizeof desc, 0, &image, &gamma, &out};
    CHECK_FAILS(lolrt_channel_norm(&desc), LOLRT_INVALID_ARGUMENT, "channel_norm: out: expected float32");
  }

  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, float32(), 4, 1, 8, &elements));
  Tensor<float> k({1, 4, 1, 8}), pages({2, elements}), rotation({4, 1, 2});
  Tensor<int32_t> table({1});
  int64_t strides[] = {INT64_MAX, 1};
  lolrt_tensor apart = pages.view;
  apart.strides = strides;
  lolrt_kv_write_desc write{sizeof write, 1e-6f, nullptr, &k, &k, nullptr, nullptr, nullptr, 0, nullptr, &apart, &table, nullptr};
  CHECK_FAILS(lolrt_kv_write(&write), LOLRT_INVALID_ARGUMENT, "kv_write: pages: no memory holds");
  write.pages = &pages;
  write.rotation = &rotation;
  for (int64_t first : {INT64_MAX - 1, INT64_MIN}) {
    write.rotation_first_channel = first;
    CHECK_FAILS(lolrt_kv_write(&write), LOLRT_INVALID_ARGUMENT, "kv_write: rotation of 1 pairs from channel");
  }
  write.rotation_first_channel = 6;
  CHECK_OK(lolrt_kv_write(&write));
}

// A page table is checked before the op writes, and read while it writes. So it may not lie where the op writes.
void test_tables_in_what_is_written() {
  const int64_t tokens = 16, dim = 64;
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, float32(), tokens, 1, dim, &elements));
  Tensor<float> k({2, tokens, 1, dim}), q_out({2, tokens, 1, dim}), pages({3, elements}), mass({2, 2, 1});
  Tensor<int32_t> own({2});
  own[1] = 1;
  lolrt_tensor table = own.view;
  const auto inside = [&](Tensor<float> &tensor, size_t element) {
    std::copy(own.values.begin(), own.values.end(), reinterpret_cast<int32_t *>(tensor.values.data() + element));
    table.data = tensor.values.data() + element;
  };

  lolrt_kv_write_desc write{sizeof write, 1e-6f, &k, &k, &k, nullptr, nullptr, nullptr, 0, &q_out, &pages, &table, nullptr};
  CHECK_OK(lolrt_kv_write(&write));
  const size_t last_page = 3 * static_cast<size_t>(elements) - 2;
  for (size_t element : {size_t{0}, last_page}) {
    inside(pages, element);
    CHECK_FAILS(lolrt_kv_write(&write), LOLRT_INVALID_ARGUMENT, "kv_write: page_table lies in the memory of pages");
  }
  inside(q_out, 5);
  CHECK_FAILS(lolrt_kv_write(&write), LOLRT_INVALID_ARGUMENT, "kv_write: page_table lies in the memory of q_out");

  table = own.view;
  lolrt_frame_attention_desc attend{sizeof attend, 0.0f,   &k,    &pages,  &table, tokens, nullptr,
                                    nullptr,       &q_out, &mass, nullptr, 0,      nullptr};
  CHECK_OK(lolrt_frame_attention_workspace(&attend, &attend.workspace_bytes));
  std::vector<float> workspace(attend.workspace_bytes / sizeof(float) + 16);
  attend.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64 / sizeof(float);
  CHECK_OK(lolrt_frame_attention(&attend));
  inside(q_out, 5);
  CHECK_FAILS(lolrt_frame_attention(&attend), LOLRT_INVALID_ARGUMENT, "page_table lies in the memory of out");
  inside(mass, 2);
  CHECK_FAILS(lolrt_frame_attention(&attend), LOLRT_INVALID_ARGUMENT, "page_table lies in the memory of mass");
  auto *in_workspace = static_cast<int32_t *>(attend.workspace) + 8;
  std::copy(own.values.begin(), own.values.end(), in_workspace);
  table.data = in_workspace;
  CHECK_FAILS(lolrt_frame_attention(&attend), LOLRT_INVALID_ARGUMENT, "page_table lies in the memory of workspace");
  inside(pages, last_page);  // these are only read
  CHECK_OK(lolrt_frame_attention(&attend));
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
  for (const int more : {-8, 8}) {  // as of a program that was built with the header of another version
    desc.struct_size = static_cast<uint32_t>(sizeof desc + more);
    const std::string told = "kv_write: descriptor of " + std::to_string(sizeof desc + more) + " bytes, and that of liblolrt " +
                             lolrt_version() + " (ABI " + std::to_string(LOLRT_ABI_VERSION) + ") has " +
                             std::to_string(sizeof desc) + ": set struct_size, or build against its lolrt.h";
    CHECK_FAILS(lolrt_kv_write(&desc), LOLRT_INVALID_ARGUMENT, told);
  }
}

}  // namespace

int main() {
  test_philox();
  test_phases();
  test_noise();
  test_windows();
  test_outputs();
  test_extremes();
  test_tables_in_what_is_written();
  test_interface();
  return report("core");
}
