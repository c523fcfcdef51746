// Every kernel set at odd sizes by the rule of oracle.h, on buffers of exactly the sizes that the interface requires.
#include "check.h"
#include "oracle.h"

#include <cstdlib>
#include <random>

namespace {

template <class T>
T not_a_number() {
  if constexpr (sizeof(T) == 1) {
    return 77;  // any byte is a number
  } else {
    return sizeof(T) == 4 ? from_float<T>(NAN) : static_cast<T>(0x7fc0);
  }
}

template <class T>
struct Random {
  std::mt19937 generator{1};
  std::normal_distribution<float> normal;
  template <class... Tensors>
  void fill(Tensors &...tensors) {
    for (std::vector<T> *values : {&tensors.values...}) {
      for (T &value : *values) value = from_float<T>(normal(generator));
    }
  }
};

// (cos, sin) pairs of random angles.
void fill_rotation(Random<float> &random, Tensor<float> &rotation) {
  for (size_t i = 0; i + 1 < rotation.values.size(); i += 2) {
    const float angle = random.normal(random.generator);
    rotation.values[i] = std::cos(angle);
    rotation.values[i + 1] = std::sin(angle);
  }
}

// A call of frame_attention with the workspace size that the library reports.
void attend(lolrt_frame_attention_desc desc) {
  desc.struct_size = sizeof desc;
  CHECK_OK(lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes));
  desc.workspace = std::aligned_alloc(64, desc.workspace_bytes);
  CHECK_OK(lolrt_frame_attention(&desc));
  std::free(desc.workspace);
}

// By how far results in 8 bits are off, relative to what is right.
void check_near(const char *what, const Numbers<Exact> &out, const Numbers<Exact> &exact, double most) {
  double error = 0.0, squares = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += (out[i] - exact[i]) * (out[i] - exact[i]);
    squares += exact[i] * exact[i];
  }
  if (!(std::sqrt(error / squares) <= most)) {
    std::printf("%s: off by %.3g, at most %.3g allowed\n", what, std::sqrt(error / squares), most);
    ++failures;
  }
}

// Stored: of the pages. bias_size: with a large one the maximum rises from page to page, and weights under- and overflow.
template <class T, class Stored = T>
void test_shape(const Shape &s, float bias_size = 1.0f) {
  Random<T> random;
  Random<float> angles;
  Tensor<T> q({s.frames, s.tokens, s.heads, s.dim}), out({s.frames, s.tokens, s.heads, s.dim}, not_a_number<T>());
  Tensor<T> k({s.pages, s.page_tokens, s.heads, s.dim}), v({s.pages, s.page_tokens, s.heads, s.dim});
  random.fill(q, k, v);
  Tensor<float> rotation({s.pages, s.frames, s.heads, s.pairs, 2}), bias({s.pages, s.heads}),
      mass({s.pages, s.frames, s.heads}, NAN);
  fill_rotation(angles, rotation);
  angles.fill(bias);
  for (float &value : bias.values) value *= bias_size;
  if (s.pages > 1) bias[0] = -INFINITY;

  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<Stored>(), s.page_tokens, s.heads, s.dim, &elements));
  Tensor<Stored> pages({s.pages + 1, elements}, not_a_number<Stored>());  // one page is never written
  Tensor<int32_t> table({s.pages});
  for (int64_t page = 0; page < s.pages; ++page) table[page] = static_cast<int32_t>((page + 1) % (s.pages + 1));
  lolrt_kv_write_desc write{};
  write.struct_size = sizeof write;
  write.k = &k;
  write.v = &v;
  write.pages = &pages;
  write.page_table = &table;
  CHECK_OK(lolrt_kv_write(&write));

  lolrt_frame_attention_desc desc{};
  desc.q = &q;
  desc.pages = &pages;
  desc.page_table = &table;
  desc.page_tokens = s.page_tokens;
  desc.rotation = &rotation;
  desc.bias = &bias;
  desc.out = &out;
  desc.mass = &mass;
  attend(desc);

  const auto in = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    return plain_attention<A>(s, numbers<A>(q), numbers<A>(k), numbers<A>(v), numbers<A>(rotation), numbers<A>(bias));
  };
  const Attended<Exact> exact = in(Exact());
  if constexpr (sizeof(Stored) == 1) {
    check_near("frame_attention over int8", numbers<Exact>(out), exact.out, 0.05);
    check_near("mass over int8", numbers<Exact>(mass), exact.mass, 0.02);
    return;
  }
  const Attended<Plain<T>> plain = in(Plain<T>());
  check_rule<T>("frame_attention", numbers<Exact>(out), plain.out, exact.out, s.dim + s.pages * s.page_tokens);
  check_rule<T>("mass", numbers<Exact>(mass), plain.mass, exact.mass, s.dim + s.pages * s.page_tokens);
}

// A batch with gaps, shared pages and an entry without pages: each entry has the bits that it has alone. Page 0 is in no row, and
// whatever must not be read is NaN.
template <class T>
void test_batch(int64_t frames, int64_t tokens, int64_t heads, int64_t dim, int64_t page_tokens, int64_t pairs) {
  constexpr int64_t batch = 4, columns = 3;
  constexpr int32_t rows[batch][columns] = {{1, -1, 3}, {-1, -1, -1}, {2, 3, 1}, {-1, 4, -1}};
  Random<T> random;
  Random<float> floats;
  Tensor<T> q({batch * frames, tokens, heads, dim}), out({batch * frames, tokens, heads, dim}, not_a_number<T>());
  Tensor<T> k({4, page_tokens, heads, dim}), v({4, page_tokens, heads, dim});
  random.fill(q, k, v);
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<T>(), page_tokens, heads, dim, &elements));
  Tensor<T> pages({5, elements}, not_a_number<T>());
  Tensor<int32_t> written({4}), table({batch, columns});
  for (int64_t page = 0; page < 4; ++page) written[page] = static_cast<int32_t>(page + 1);
  lolrt_kv_write_desc write{};
  write.struct_size = sizeof write;
  write.k = &k;
  write.v = &v;
  write.pages = &pages;
  write.page_table = &written;
  CHECK_OK(lolrt_kv_write(&write));
  Tensor<float> rotation({batch, columns, frames, heads, pairs, 2}), bias({batch, columns, heads}),
      mass({batch, columns, frames, heads}, NAN);
  floats.fill(rotation, bias);
  const int64_t rotations = frames * heads * pairs * 2, masses = frames * heads, rows_of_q = frames * tokens * heads * dim;
  for (int64_t i = 0; i < batch * columns; ++i) {
    table[i] = rows[i / columns][i % columns];
    if (table[i] >= 0) continue;
    for (int64_t j = 0; j < rotations; ++j) rotation[i * rotations + j] = NAN;
    for (int64_t j = 0; j < heads; ++j) bias[i * heads + j] = NAN;
  }
  lolrt_frame_attention_desc desc{};
  desc.q = &q;
  desc.pages = &pages;
  desc.page_table = &table;
  desc.page_tokens = page_tokens;
  desc.rotation = &rotation;
  desc.bias = &bias;
  desc.out = &out;
  desc.mass = &mass;
  attend(desc);
  for (int64_t entry = 0; entry < batch; ++entry) {
    std::vector<int64_t> there;
    for (int64_t p = 0; p < columns; ++p) {
      if (rows[entry][p] >= 0) there.push_back(p);
    }
    const auto count = static_cast<int64_t>(there.size());
    std::vector<T> expected(static_cast<size_t>(rows_of_q));
    std::vector<float> expected_mass(static_cast<size_t>(columns * masses));
    if (count > 0) {
      Tensor<T> own_q({frames, tokens, heads, dim}), own_out({frames, tokens, heads, dim}, not_a_number<T>());
      Tensor<int32_t> own_table({count});
      Tensor<float> own_rotation({count, frames, heads, pairs, 2}), own_bias({count, heads}),
          own_mass({count, frames, heads}, NAN);
      std::copy_n(&q[entry * rows_of_q], rows_of_q, own_q.values.begin());
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = entry * columns + there[static_cast<size_t>(i)];
        own_table[i] = table[from];
        std::copy_n(&rotation[from * rotations], rotations, &own_rotation[i * rotations]);
        std::copy_n(&bias[from * heads], heads, &own_bias[i * heads]);
      }
      desc.q = &own_q;
      desc.page_table = &own_table;
      desc.rotation = &own_rotation;
      desc.bias = &own_bias;
      desc.out = &own_out;
      desc.mass = &own_mass;
      attend(desc);
      expected = own_out.values;
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(&own_mass[i * masses], masses, expected_mass.begin() + there[static_cast<size_t>(i)] * masses);
      }
    }
    CHECK(std::memcmp(&out[entry * rows_of_q], expected.data(), expected.size() * sizeof(T)) == 0);
    CHECK(std::memcmp(&mass[entry * columns * masses], expected_mass.data(), expected_mass.size() * sizeof(float)) == 0);
  }
}

// K and V of a page, [tokens][heads][dim], by the layout that lolrt.h describes.
template <class T>
void unpack(const T *page, Tensor<T> &k, Tensor<T> &v) {
  const int64_t tokens = k.shape[0], heads = k.shape[1], dim = k.shape[2], depth = sizeof(T) == 4 ? 1 : 2;
  const int64_t blocks = (tokens + 15) / 16, groups = (tokens + depth - 1) / depth, line = 64 / sizeof(T);
  const T *values = page + (heads * blocks * 16 * dim + line - 1) / line * line;
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    const int64_t t = i / dim / heads, h = i / dim % heads, c = i % dim;
    k[i] = page[(((h * blocks + t / 16) * (dim / depth) + c / depth) * 16 + t % 16) * depth + c % depth];
    v[i] = values[(((h * ((dim + 15) / 16) + c / 16) * groups + t / depth) * 16 + c % 16) * depth + t % depth];
  }
}

// kv_write, modulated_norm and gelu at sizes that end in the middle of a vector.
template <class T>
void test_rows(int64_t tokens, int64_t heads, int64_t dim, int64_t pairs, int64_t first) {
  Random<T> random;
  Random<float> angles;
  Tensor<T> q({2, tokens, heads, dim}), q_out({2, tokens, heads, dim}, not_a_number<T>()), v({2, tokens, heads, dim}),
      weight({heads, dim});
  random.fill(q, v, weight);
  Tensor<float> rotation({tokens, pairs, 2});
  fill_rotation(angles, rotation);
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<T>(), tokens, heads, dim, &elements));
  Tensor<T> pages({2, elements}, not_a_number<T>());
  Tensor<int32_t> table({2});
  table[0] = 1;
  const lolrt_kv_write_desc write{sizeof write, 1e-6f, &q,     &q,     &v,     &weight, &weight,
                                  &rotation,    first, &q_out, &pages, &table, nullptr};
  CHECK_OK(lolrt_kv_write(&write));
  const auto projected = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    return plain_projection<A>(numbers<A>(q), numbers<A>(weight), numbers<A>(rotation), tokens, heads, dim, pairs, first, 1e-6);
  };
  check_rule<T>("kv_write", numbers<Exact>(q_out), projected(Plain<T>()), projected(Exact()), heads * dim);
  for (int64_t frame = 0; frame < 2; ++frame) {  // K as queries of the same numbers, V as it was
    Tensor<T> key({tokens, heads, dim}), value({tokens, heads, dim});
    unpack(&pages[table[frame] * elements], key, value);
    const size_t bytes = key.values.size() * sizeof(T), from = frame * key.values.size();
    CHECK(std::memcmp(key.values.data(), &q_out[from], bytes) == 0);
    CHECK(std::memcmp(value.values.data(), &v[from], bytes) == 0);
  }

  const int64_t channels = heads * dim;
  Tensor<T> x({2, tokens, channels}), residual({2, tokens, channels}), out({2, tokens, channels}, not_a_number<T>());
  random.fill(x, residual);
  Tensor<float> gate({2, channels}), scale({1, channels}), shift({2, channels});
  angles.fill(gate, scale, shift);
  const auto updated = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    Numbers<A> sum = numbers<A>(x);
    const Numbers<A> by = numbers<A>(gate), add = numbers<A>(residual);
    for (size_t i = 0; i < sum.size(); ++i) {
      const auto factor = A::round(by[i / (tokens * channels) * channels + i % channels]);
      sum[i] = A::round(sum[i] + A::round(factor * add[i]));
    }
    return sum;
  };
  const auto plain = updated(Plain<T>());
  const auto exact = updated(Exact());
  const lolrt_modulated_norm_desc norm{sizeof norm, 1e-6f, &x, &residual, &gate, &scale, &shift, &out, nullptr};
  CHECK_OK(lolrt_modulated_norm(&norm));
  check_rule<T>("residual", numbers<Exact>(x), plain, exact, 1);
  const auto normed = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    return plain_norm<A>(numbers<A>(x), numbers<A>(scale), numbers<A>(shift), 1e-6);
  };
  check_rule<T>("modulated_norm", numbers<Exact>(out), normed(Plain<T>()), normed(Exact()), channels);

  for (T &value : residual.values) value = from_float<T>(10 * to_float(value));
  const auto curved = [&](auto arithmetic) { return plain_gelu<decltype(arithmetic)>(numbers<decltype(arithmetic)>(residual)); };
  const auto plain_curve = curved(Plain<T>());
  const auto exact_curve = curved(Exact());
  const lolrt_gelu_desc gelu{sizeof gelu, &residual, nullptr};
  CHECK_OK(lolrt_gelu(&gelu));
  check_rule<T>("gelu", numbers<Exact>(residual), plain_curve, exact_curve, 1);
}

// quantize_rows and dequantize_rows, at sizes that end in the middle of a vector; one row is not finite.
template <class T>
void test_quantized(int64_t tokens, int64_t channels) {
  Random<T> random;
  Random<float> floats;
  Tensor<T> x({1, tokens, channels}), out({1, tokens, channels}, not_a_number<T>());
  random.fill(x);
  if (tokens > 1) x[2 * channels - 1] = not_a_number<T>();
  Tensor<uint8_t> q({1, tokens, channels}, 7);
  Tensor<float> scale({1, tokens}, NAN), sums({1, tokens, channels}), bias({channels});
  const lolrt_quantize_rows_desc quantize{sizeof quantize, &x, &q, &scale};
  CHECK_OK(lolrt_quantize_rows(&quantize));
  for (int64_t t = 0; t < tokens; ++t) {
    double most = 0.0;
    for (int64_t c = 0; c < channels; ++c) most = std::max<double>(most, std::fabs(to_float(x[t * channels + c])));
    CHECK(t == 1 ? std::isnan(scale[t]) : std::fabs(scale[t] - most / 127) <= 0x1p-23 * scale[t]);
    // Half a step, and the roundings of 1 / scale and of its product with x, at most 127.
    for (int64_t c = 0; c < channels; ++c) {
      const double step = t == 1 ? 0.0 : to_float(x[t * channels + c]) / most * 127;
      CHECK(std::fabs(q[t * channels + c] - 128 - step) <= 0.5 + 127 * 0x1p-22);
    }
  }
  floats.fill(sums, scale, bias);
  const lolrt_dequantize_rows_desc dequantize{sizeof dequantize, &sums, &scale, &bias, &out};
  CHECK_OK(lolrt_dequantize_rows(&dequantize));
  const auto scaled = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    Numbers<A> all = numbers<A>(sums);
    for (int64_t i = 0; i < tokens * channels; ++i) all[i] = A::round(all[i] * scale[i / channels] + bias[i % channels]);
    return all;
  };
  check_rule<T>("dequantize_rows", numbers<Exact>(out), scaled(Plain<T>()), scaled(Exact()), 1);
}

// float32 to bfloat16: to the nearest, ties to even, at the ends of the range too; a NaN stays one. Some CPUs take subnormal
// numbers for 0.
void test_rounding() {
  constexpr uint32_t lows[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
  Tensor<float> x({1, 1 << 16, 6}), scale({1, 1 << 16}, 1.0f), bias({6}, -0.0f);
  for (int64_t i = 0; i < static_cast<int64_t>(x.values.size()); ++i) {
    uint32_t word = static_cast<uint32_t>(i / 6) << 16 | lows[i % 6];
    if ((word & 0x7fffffff) > 0x7f800000) word |= 0x400000;  // a signalling NaN is no result of arithmetic
    std::memcpy(&x[i], &word, sizeof word);
  }
  Tensor<uint16_t> out({1, 1 << 16, 6});
  const lolrt_dequantize_rows_desc desc{sizeof desc, &x, &scale, &bias, &out};
  CHECK_OK(lolrt_dequantize_rows(&desc));
  int64_t wrong = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(x.values.size()); ++i) {
    const bool flushed = std::fabs(x[i]) < 0x1p-126f && to_float(out[i]) == 0.0f;
    wrong += std::isnan(x[i]) ? !std::isnan(to_float(out[i])) : !flushed && out[i] != from_float<uint16_t>(x[i]);
  }
  CHECK(wrong == 0);
}

// To the bit: every element is a sum of its own.
void test_sampler_step(int64_t elements) {
  Random<float> random;
  Tensor<float> sample({elements}), velocity({elements}), noise({elements}), out({elements}, NAN);
  random.fill(sample, velocity, noise);
  const lolrt_sampler_step_desc desc{sizeof desc, 0.7, 0.3, &sample, &velocity, &noise, &out, nullptr};
  CHECK_OK(lolrt_sampler_step(&desc));
  for (int64_t i = 0; i < elements; ++i) {
    const auto clean = static_cast<float>(sample[i] - 0.7 * velocity[i]);
    CHECK(out[i] == static_cast<float>(1 - 0.3) * clean + 0.3f * noise[i]);
  }
}

// A call that writes so much that it goes past the caches, frame by frame the bits of calls that do not.
template <class T>
void test_large_write() {
  constexpr int64_t frames = 3, tokens = 1571, heads = 8, dim = 128;
  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<T>(), tokens, heads, dim, &elements));
  CHECK(frames * elements * sizeof(T) > 16 << 20);
  Tensor<T> k({frames, tokens, heads, dim}), alone({1, elements}, not_a_number<T>());
  for (size_t i = 0; i < k.values.size(); ++i) k.values[i] = from_float<T>(static_cast<float>(i * 2654435761u % 509));
  const auto write = [&](const lolrt_tensor *x, void *to, int64_t count) {
    int64_t shape[] = {count, elements};
    const lolrt_tensor pages{to, {LOLRT_DEVICE_CPU, 0}, 2, dtype_of<T>(), shape, nullptr, 0};
    Tensor<int32_t> table({count});
    for (int64_t i = 0; i < count; ++i) table[i] = static_cast<int32_t>(i);
    lolrt_kv_write_desc desc{};
    desc.struct_size = sizeof desc;
    desc.k = desc.v = x;
    desc.pages = &pages;
    desc.page_table = &table;
    CHECK_OK(lolrt_kv_write(&desc));
  };
  const size_t bytes = frames * elements * sizeof(T);
  auto *together = static_cast<T *>(std::aligned_alloc(64, bytes));  // lines that are written as a whole start on one
  std::fill_n(together, frames * elements, not_a_number<T>());
  write(&k, together, frames);
  for (int64_t frame = 0; frame < frames; ++frame) {
    int64_t shape[] = {1, tokens, heads, dim};
    const lolrt_tensor one{&k[frame * tokens * heads * dim], {LOLRT_DEVICE_CPU, 0}, 4, dtype_of<T>(), shape, nullptr, 0};
    write(&one, alone.values.data(), 1);
    CHECK(std::memcmp(together + frame * elements, alone.values.data(), elements * sizeof(T)) == 0);
  }
  std::free(together);
}

// The decoder's ops, with exact buffers for inputs and outputs.
template <class T>
void test_channel_norm(int64_t columns, int64_t channels, int64_t margin) {
  Random<T> random;
  Random<float> floats;
  Tensor<T> x({2, 3, columns, channels}), out({2, 3 + 2 * margin, columns + 2 * margin, channels}, not_a_number<T>());
  random.fill(x);
  Tensor<float> gamma({channels});
  floats.fill(gamma);
  const lolrt_channel_norm_desc desc{sizeof desc, 1, &x, &gamma, &out};
  CHECK_OK(lolrt_channel_norm(&desc));
  Numbers<Exact> inside;
  for (int64_t i = 0; i < static_cast<int64_t>(out.values.size()); ++i) {
    const int64_t pixel = i / channels, column = pixel % (columns + 2 * margin) - margin;
    const int64_t row = pixel / (columns + 2 * margin) % (3 + 2 * margin) - margin;
    if (row >= 0 && row < 3 && column >= 0 && column < columns) {
      inside.push_back(to_float(out[i]));
    } else {
      CHECK(to_float(out[i]) == 0.0f);
    }
  }
  check_rule<T>("channel_norm", inside, plain_channel_norm<Plain<T>>(numbers<Plain<T>>(x), numbers<Plain<T>>(gamma)),
                plain_channel_norm<Exact>(numbers<Exact>(x), numbers<Exact>(gamma)), channels);
}

void test_conv3d(int64_t columns, int64_t in, int64_t out_channels) {
  Random<float> random;
  Tensor<float> past({2, 4, columns + 2, in}), x({2, 4, columns + 2, in}), residual({2, 2, columns, out_channels});
  const int64_t blocks = (out_channels + 15) / 16;
  Tensor<float> weight({blocks, 3, 3, 3, in, 16}), bias({blocks, 16}), out({2, 2, columns, out_channels}, NAN);
  random.fill(past, x, residual, weight, bias);
  const lolrt_conv3d_desc desc{sizeof desc, &past, &x, &weight, &bias, &residual, &out};
  CHECK_OK(lolrt_conv3d(&desc));
  const auto convolved = [&](auto arithmetic) {
    using N = typename decltype(arithmetic)::Number;
    std::vector<N> all;
    for (int64_t i = 0; i < static_cast<int64_t>(out.values.size()); ++i) {
      const int64_t channel = i % out_channels, column = i / out_channels % columns, row = i / out_channels / columns % 2;
      const int64_t frame = i / out_channels / columns / 2;
      N sum = bias[channel];
      for (int64_t tap = 0; tap < 27; ++tap) {
        const int64_t from = frame + tap / 9;
        Tensor<float> &image = from < 2 ? past : x;
        const int64_t pixel = ((from % 2) * 4 + row + tap / 3 % 3) * (columns + 2) + column + tap % 3;
        for (int64_t c = 0; c < in; ++c)
          sum += static_cast<N>(image[pixel * in + c]) * weight[(((channel / 16) * 27 + tap) * in + c) * 16 + channel % 16];
      }
      all.push_back(sum + residual[i]);
    }
    return all;
  };
  check_rule<float>("conv3d", numbers<Exact>(out), convolved(Plain<float>()), convolved(Exact()), 27 * in);
}

}  // namespace

int main() {
  std::string names = lolrt_isas();
  for (size_t start = 0; start < names.size();) {
    const size_t end = std::min(names.find(',', start), names.size());
    const std::string isa = names.substr(start, end - start);
    start = end + 1;
    CHECK_OK(lolrt_set_isa(isa.c_str()));
    const int before = failures;
    for (const Shape &shape : {Shape{1, 1, 1, 2, 1, 1, 1}, Shape{3, 24, 2, 64, 4, 24, 22}, Shape{2, 7, 1, 128, 3, 33, 22},
                               Shape{1, 97, 1, 38, 2, 65, 3}, Shape{1, 5, 2, 250, 2, 130, 125}, Shape{1, 13, 1, 256, 1, 63, 128},
                               Shape{1, 290, 1, 32, 1, 275, 16}}) {
      test_shape<float>(shape);
      test_shape<uint16_t>(shape);
      test_shape<float, int8_t>(shape);
      test_shape<uint16_t, int8_t>(shape);
    }
    test_shape<float, int8_t>({1, 9, 1, 30, 2, 530, 15});  // longer than a panel
    test_shape<float>({2, 25, 2, 64, 9, 70, 22}, 200.0f);
    test_shape<uint16_t>({2, 25, 2, 64, 9, 70, 22}, 200.0f);
    for (int64_t frames : {1, 3}) {
      test_batch<float>(frames, 13, 2, 38, 19, 3);
      test_batch<uint16_t>(frames, 13, 2, 38, 19, 3);
      test_batch<float>(frames, 97, 1, 64, 65, 32);
      test_batch<uint16_t>(frames, 97, 1, 64, 65, 32);
    }
    for (int64_t tokens : {1, 16, 33}) {
      test_rows<float>(tokens, 2, 64, 10, 44);
      test_rows<uint16_t>(tokens, 2, 64, 10, 44);
      test_rows<float>(tokens, 3, 6, 2, 2);
      test_rows<uint16_t>(tokens, 3, 6, 2, 2);
      test_quantized<float>(tokens, 5 * tokens);
      test_quantized<uint16_t>(tokens, 5 * tokens);
      test_sampler_step(1000 * tokens);
    }
    test_rounding();
    test_large_write<float>();
    test_large_write<uint16_t>();
    for (int64_t columns : {1, 26, 47}) {
      test_channel_norm<float>(columns, 19, 1);
      test_channel_norm<uint16_t>(columns, 19, 1);
      test_channel_norm<float>(columns, 32, 0);
      test_conv3d(columns, 5, 3);
      test_conv3d(columns, 16, 41);
    }
    std::printf("%s: %s\n", isa.c_str(), failures == before ? "ok" : "FAILED");
  }
  return report("kernels");
}
