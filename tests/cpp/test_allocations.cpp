// No op allocates on the heap after its first call. The address sanitizer's allocator counts, so every malloc and new of the
// process is seen, also those of the library's threads.
#include "check.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

// Declared in <sanitizer/allocator_interface.h>, which some GCC installations lack.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void *, size_t),
                                                         void (*freed)(const volatile void *));

namespace {

std::atomic<int64_t> allocations{0};

// The fewest allocations of any call after the first. Not those of a single call: a thread that the first call has started may
// begin to run during a later one, and the sanitizer allocates for it.
template <class Op>
int64_t of_later_calls(const Op &op) {
  CHECK_OK(op());
  int64_t fewest = INT64_MAX;
  for (int call = 0; call < 3; ++call) {
    const int64_t before = allocations;
    const lolrt_status status = op();
    fewest = std::min<int64_t>(fewest, allocations - before);
    CHECK_OK(status);
  }
  return fewest;
}

template <class T>
void test_ops() {
  const int64_t frames = 2, tokens = 70, heads = 3, dim = 128, pages = 3, pairs = 22;
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<T>(), tokens, heads, dim, &elements));
  Tensor<T> q({frames, tokens, heads, dim}), k({frames, tokens, heads, dim}), v({frames, tokens, heads, dim}),
      out({frames, tokens, heads, dim}), weight({heads, dim}), pool({pages, elements});
  Tensor<float> spatial({tokens, pairs, 2}), rotation({pages, frames, heads, pairs, 2}), bias({pages, heads}),
      mass({pages, frames, heads});
  Tensor<int32_t> written({frames}), read({pages});
  for (int32_t page = 0; page < pages; ++page) read[page] = page;
  for (int32_t frame = 0; frame < frames; ++frame) written[frame] = frame;

  const lolrt_kv_write_desc write{sizeof write, 1e-6f, &q,   &k,    &v,       &weight, &weight,
                                  &spatial,     44,    &out, &pool, &written, nullptr};
  CHECK(of_later_calls([&] { return lolrt_kv_write(&write); }) == 0);

  lolrt_frame_attention_desc attention{sizeof attention, 0.0f, &q,     &pool, &read, tokens, &rotation, &bias, &out, &mass,
                                       nullptr,          0,    nullptr};
  CHECK(of_later_calls([&] { return lolrt_frame_attention_workspace(&attention, &attention.workspace_bytes); }) == 0);
  const std::unique_ptr<void, void (*)(void *)> workspace(std::aligned_alloc(64, attention.workspace_bytes), std::free);
  attention.workspace = workspace.get();
  CHECK(of_later_calls([&] { return lolrt_frame_attention(&attention); }) == 0);

  Tensor<T> x({frames, 500, dim}), residual({frames, 500, dim}), normed({frames, 500, dim});
  Tensor<float> gate({frames, dim}), scale({1, dim}), shift({1, dim});
  const lolrt_modulated_norm_desc norm{sizeof norm, 1e-6f, &x, &residual, &gate, &scale, &shift, &normed, nullptr};
  CHECK(of_later_calls([&] { return lolrt_modulated_norm(&norm); }) == 0);
  const lolrt_gelu_desc gelu{sizeof gelu, &x, nullptr};
  CHECK(of_later_calls([&] { return lolrt_gelu(&gelu); }) == 0);
  Tensor<uint8_t> bytes({frames, 500, dim});
  Tensor<float> row_scale({frames, 500}), sums({frames, 500, dim}), channel_bias({dim});
  const lolrt_quantize_rows_desc quantize{sizeof quantize, &x, &bytes, &row_scale};
  CHECK(of_later_calls([&] { return lolrt_quantize_rows(&quantize); }) == 0);
  const lolrt_dequantize_rows_desc dequantize{sizeof dequantize, &sums, &row_scale, &channel_bias, &normed};
  CHECK(of_later_calls([&] { return lolrt_dequantize_rows(&dequantize); }) == 0);
}

void test_tables_and_noise() {
  Tensor<float> sample({100000}), velocity({100000}), fresh({100000});
  const lolrt_sampler_step_desc step{sizeof step, 0.9, 0.5, &sample, &velocity, &fresh, &sample, nullptr};
  CHECK(of_later_calls([&] { return lolrt_sampler_step(&step); }) == 0);
  Tensor<uint64_t> turns({3, 22});
  Tensor<int64_t> offsets({12, 3});
  Tensor<float> table({12, 3, 3, 22, 2}), noise({16, 60, 104});
  CHECK(of_later_calls([&] { return lolrt_rotation_table(&turns, &offsets, &table); }) == 0);
  CHECK(of_later_calls([&] { return lolrt_normal(1, 2, 3, &noise); }) == 0);
}

}  // namespace

int main() {
  __sanitizer_install_malloc_and_free_hooks([](const volatile void *, size_t) { ++allocations; }, [](const volatile void *) {});
  const int64_t before = allocations;
  {
    const Tensor<float> seen({1});
  }
  CHECK(allocations > before);

  CHECK_OK(lolrt_set_threads(3));
  const std::string names = lolrt_isas();
  for (size_t start = 0, end; start < names.size(); start = end + 1) {
    end = std::min(names.find(',', start), names.size());
    CHECK_OK(lolrt_set_isa(names.substr(start, end - start).c_str()));
    test_ops<float>();
    test_ops<uint16_t>();
  }
  test_tables_and_noise();
  return report("allocations");
}
