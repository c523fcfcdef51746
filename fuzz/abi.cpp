// Fuzzes the C ABI: whatever a descriptor says of tensors whose memory is there, a call computes or refuses, and touches nothing
// else. Bytes choose an op and its tensors (tensors.h).
//
//     clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc/include -Icsrc
//       -DLOLRT_VERSION='"0"' -DLOLRT_SHARED_HEADERS='"0"' fuzz/abi.cpp csrc/core/*.cpp csrc/cpu/scalar.cpp -o build/fuzz_abi
//     build/fuzz_abi -runs=10000000
//
// With fuzz/abi.cpp -Llolrt/lib -llolrt -Wl,-rpath,$PWD/lolrt/lib in place of the sources it calls the library as it was built,
// and its CUDA half.
//
// Without libFuzzer -DSTANDALONE, and no `fuzzer`, makes a program that draws the bytes itself: build/fuzz_abi CALLS SEED.
#include "tensors.h"

using namespace fuzz;

namespace {

void fuzz_kv_write(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  const lolrt_dtype page_dtype = bytes.next() % 2 ? kInt8 : dtype;
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, page_dtype, tokens, heads, dim, &elements);
  const auto rows = {frames, tokens, heads, dim};
  const lolrt_kv_write_desc desc{bytes.rarely() ? bytes.next() : static_cast<uint32_t>(sizeof desc),
                                 1e-6f,
                                 tensor(dtype, rows),
                                 tensor(dtype, rows),
                                 tensor(dtype, rows),
                                 tensor(dtype, {heads, dim}),
                                 tensor(dtype, {heads, dim}),
                                 tensor(kFloat32, {tokens, 1, 2}),
                                 bytes.or_number(0),
                                 tensor(dtype, rows),
                                 tensor(page_dtype, {frames + 1, elements}),
                                 tensor(kInt32, {frames}),
                                 nullptr};
  tensor.check(lolrt_kv_write(&desc), (desc.q || desc.q_out) && (desc.k || desc.v));
}

void fuzz_frame_attention(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  const int64_t page_tokens = 1 + bytes.below(20), pages = 1 + bytes.below(3);
  const lolrt_dtype page_dtype = bytes.next() % 2 ? kInt8 : dtype;
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, page_dtype, page_tokens, heads, dim, &elements);
  lolrt_frame_attention_desc desc{bytes.rarely() ? bytes.next() : static_cast<uint32_t>(sizeof desc),
                                  bytes.rarely() ? static_cast<float>(bytes.number()) : 0.0f,
                                  tensor(dtype, {frames, tokens, heads, dim}),
                                  tensor(page_dtype, {3, elements}),
                                  bytes.next() % 2 ? tensor(kInt32, {pages}) : tensor(kInt32, {1, pages}),
                                  bytes.or_number(page_tokens),
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, frames, heads, 1, 2}) : nullptr,
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, heads}) : nullptr,
                                  tensor(dtype, {frames, tokens, heads, dim}),
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, frames, heads}) : nullptr,
                                  nullptr,
                                  0,
                                  nullptr};
  if (lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes) == LOLRT_OK && desc.workspace_bytes < (1 << 26)) {
    std::vector<char> room(desc.workspace_bytes + 63);
    desc.workspace = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
    if (bytes.rarely()) desc.workspace_bytes /= 2;
    tensor.check(lolrt_frame_attention(&desc));
  }
}

void fuzz_modulated_norm(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const lolrt_modulated_norm_desc desc{sizeof desc,
                                       1e-6f,
                                       tensor(dtype, rows),
                                       tensor(dtype, rows),
                                       tensor(kFloat32, {frames, channels}),
                                       tensor(kFloat32, {1, channels}),
                                       tensor(kFloat32, {frames, channels}),
                                       tensor(dtype, rows),
                                       nullptr};
  tensor.check(lolrt_modulated_norm(&desc));
}

void fuzz_gelu(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const lolrt_gelu_desc desc{sizeof desc, tensor(dtype, {1 + bytes.below(3), 1 + bytes.below(9), 1 + bytes.below(70)}), nullptr};
  tensor.check(lolrt_gelu(&desc));
}

void fuzz_quantize_rows(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const lolrt_quantize_rows_desc desc{sizeof desc, tensor(dtype, rows), tensor(kUint8, rows), tensor(kFloat32, {frames, tokens})};
  tensor.check(lolrt_quantize_rows(&desc));
}

void fuzz_dequantize_rows(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const lolrt_dequantize_rows_desc desc{sizeof desc, tensor(kFloat32, rows), tensor(kFloat32, {frames, tokens}),
                                        tensor(kFloat32, {channels}), tensor(dtype, rows)};
  tensor.check(lolrt_dequantize_rows(&desc));
}

void fuzz_sampler_step(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const auto size = {1 + bytes.below(200)};
  const lolrt_sampler_step_desc desc{
      sizeof desc, 0.9, 0.5, tensor(kFloat32, size), tensor(kFloat32, size), tensor(kFloat32, size), tensor(kFloat32, size),
      nullptr};
  tensor.check(lolrt_sampler_step(&desc));
}

void fuzz_channel_norm(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(2), rows = 1 + bytes.below(4), columns = 1 + bytes.below(4),
                channels = 1 + bytes.below(40);
  const int64_t margin = bytes.below(3);
  const lolrt_channel_norm_desc desc{sizeof desc, bytes.next() % 2, tensor(dtype, {frames, rows, columns, channels}),
                                     tensor(kFloat32, {channels}),
                                     tensor(kFloat32, {frames, rows + 2 * margin, columns + 2 * margin, channels})};
  tensor.check(lolrt_channel_norm(&desc));
}

void fuzz_conv3d(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const int64_t taps = 1 + bytes.below(3), side = 1 + bytes.below(3), in = 1 + bytes.below(20), out = 1 + bytes.below(40);
  const int64_t frames = 1 + bytes.below(2), rows = side + bytes.below(3), columns = side + bytes.below(3),
                blocks = (out + 15) / 16;
  const auto result = {frames, rows - side + 1, columns - side + 1, out};
  const lolrt_conv3d_desc desc{sizeof desc,
                               taps > 1 ? tensor(kFloat32, {taps - 1, rows, columns, in}) : nullptr,
                               tensor(kFloat32, {frames, rows, columns, in}),
                               tensor(kFloat32, {blocks, taps, side, side, in, 16}),
                               tensor(kFloat32, {blocks, 16}),
                               tensor(kFloat32, result),
                               tensor(kFloat32, result)};
  tensor.check(lolrt_conv3d(&desc));
}

void fuzz_tables(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const int64_t pages = 1 + bytes.below(4), frames = 1 + bytes.below(4), heads = 1 + bytes.below(3), pairs = 1 + bytes.below(9);
  tensor.check(lolrt_rotation_table(tensor(kUint64, {heads, pairs}), tensor(kInt64, {pages, frames}),
                                    tensor(kFloat32, {pages, frames, heads, pairs, 2})));
}

void fuzz_normal(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  tensor.check(lolrt_normal(bytes.next(), bytes.number(), static_cast<int32_t>(bytes.below(9)),
                            tensor(kFloat32, {1 + bytes.below(9), 1 + bytes.below(9)})));
}

void fuzz_windows(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  lolrt_pool *pool = nullptr;
  lolrt_window *window = nullptr;
  const int64_t pages = bytes.number();
  if (lolrt_pool_create(pages > 4096 ? 4096 : pages, &pool) != LOLRT_OK) return;
  if (lolrt_window_create(pool, bytes.number(), bytes.number(), &window) == LOLRT_OK) {
    int64_t frame = bytes.number(), frames[8];
    int32_t page = -1;  // it is ours to release, not the window's
    for (int call = 0; call < 12; ++call) {
      const int64_t count = bytes.or_number(1 + bytes.below(3));
      const uint8_t choice = bytes.next() % 8;
      const int64_t first = bytes.rarely() ? bytes.number() : frame;
      if (choice < 5 && lolrt_window_advance(window, first, count) == LOLRT_OK) frame = first + count;
      if (choice == 5 && page < 0) tensor.check(lolrt_pool_acquire(pool, &page));
      if (choice == 6 && lolrt_pool_release(pool, page) == LOLRT_OK) page = -1;
      if (choice == 7) {
        for (int64_t &each : frames) each = bytes.number();
        tensor.check(lolrt_window_restore(window, frames, bytes.below(9)));
      }
    }
    std::vector<int32_t> held(static_cast<size_t>(lolrt_window_size(window)));
    std::vector<int64_t> named(held.size());
    if (lolrt_window_read(window, held.data(), named.data(), lolrt_window_size(window)) != LOLRT_OK) std::abort();
    std::sort(held.begin(), held.end());
    if (std::adjacent_find(held.begin(), held.end()) != held.end()) std::abort();  // two frames in one page
    lolrt_window_destroy(window);
  }
  lolrt_pool_destroy(pool);
  int64_t elements = 0;
  const lolrt_dtype dtype{bytes.next(), bytes.next(), 1};
  tensor.check(lolrt_page_elements(static_cast<int32_t>(bytes.below(4)), dtype, bytes.number(), bytes.number(), bytes.number(),
                                   &elements));
}

}  // namespace

long calls = 0;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr void (*targets[])(Bytes &, Tensors &, lolrt_dtype) = {
      fuzz_kv_write, fuzz_frame_attention, fuzz_modulated_norm, fuzz_gelu,    fuzz_sampler_step,  fuzz_channel_norm,
      fuzz_conv3d,   fuzz_tables,          fuzz_normal,         fuzz_windows, fuzz_quantize_rows, fuzz_dequantize_rows};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  Tensors tensors(bytes);
  ++calls;
  targets[choice % std::size(targets)](bytes, tensors, choice & 128 ? kBfloat16 : kFloat32);
  return 0;
}
