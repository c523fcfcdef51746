// No op touches the heap once it has run: counted by the address sanitizer's allocator, which sees every malloc and new of the
// process, those of the library's threads too.
#include "check.h"

#include <atomic>
#include <cstdlib>
#include <memory>

// Of <sanitizer/allocator_interface.h>, which not every GCC comes with.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void *, size_t),
                                                         void (*freed)(const volatile void *));

namespace {

std::atomic<int64_t> allocations{0};

// Allocations of a second call, the first having started threads and whatever else is made once.
template <class Op>
int64_t of_second_call(const Op &op) {
  CHECK_OK(op());
  const int64_t before = allocations;
  const lolrt_status status = op();
  const int64_t during = allocations - before;
  CHECK_OK(status);
  return during;
}

template <class T>
void test_ops() {
  const int64_t frames = 2, tokens = 70, heads = 3, dim = 128, pages = 3, pairs = 22;
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(dtype_of<T>(), tokens, heads, dim, &elements));
  Tensor<T> q({frames, tokens, heads, dim}), k({frames, tokens, heads, dim}), v({frames, tokens, heads, dim}),
      out({frames, tokens, heads, dim}), weight({heads, dim}), pool({pages, elements});
  Tensor<float> spatial({tokens, pairs, 2}), rotation({pages, frames, heads, pairs, 2}), bias({pages, heads}),
      mass({pages, frames, heads});
  Tensor<int32_t> written({frames}), read({pages});
  for (int32_t page = 0; page < pages; ++page) read[page] = page;
  for (int32_t frame = 0; frame < frames; ++frame) written[frame] = frame;

  const lolrt_kv_write_desc write{sizeof write, 1e-6f, &q, &k, &v, &weight, &weight, &spatial, 44, &out, &pool, &written};
  CHECK(of_second_call([&] { return lolrt_kv_write(&write); }) == 0);

  lolrt_frame_attention_desc attention{sizeof attention, 0.0f,  &q,   &pool, &read,   tokens,
                                       &rotation,        &bias, &out, &mass, nullptr, 0};
  CHECK(of_second_call([&] { return lolrt_frame_attention_workspace(&attention, &attention.workspace_bytes); }) == 0);
  const std::unique_ptr<void, void (*)(void *)> workspace(std::aligned_alloc(64, attention.workspace_bytes), std::free);
  attention.workspace = workspace.get();
  CHECK(of_second_call([&] { return lolrt_frame_attention(&attention); }) == 0);

  Tensor<T> x({frames, 500, dim}), residual({frames, 500, dim}), normed({frames, 500, dim});
  Tensor<float> gate({frames, dim}), scale({1, dim}), shift({1, dim});
  const lolrt_modulated_norm_desc norm{sizeof norm, 1e-6f, &x, &residual, &gate, &scale, &shift, &normed};
  CHECK(of_second_call([&] { return lolrt_modulated_norm(&norm); }) == 0);
  const lolrt_gelu_desc gelu{sizeof gelu, &x};
  CHECK(of_second_call([&] { return lolrt_gelu(&gelu); }) == 0);
}

void test_tables_and_noise() {
  Tensor<uint64_t> turns({3, 22});
  Tensor<int64_t> offsets({12, 3});
  Tensor<float> table({12, 3, 3, 22, 2}), noise({16, 60, 104});
  CHECK(of_second_call([&] { return lolrt_rotation_table(&turns, &offsets, &table); }) == 0);
  CHECK(of_second_call([&] { return lolrt_normal(1, 2, 3, &noise); }) == 0);
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
