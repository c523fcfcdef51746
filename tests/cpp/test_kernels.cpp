// Every kernel set at odd sizes against a plain loop in double, on buffers of exactly the sizes that the interface requires.
#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace {

float to_float(float value) { return value; }
float to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
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
template <class T>
T not_a_number() {
  return sizeof(T) == 4 ? from_float<T>(NAN) : static_cast<T>(0x7fc0);
}

template <class T>
struct Random {
  std::mt19937 generator{1};
  std::normal_distribution<float> normal;
  void fill(Tensor<T> &tensor) {
    for (T &value : tensor.values) value = from_float<T>(normal(generator));
  }
};

struct Shape {
  int64_t frames, tokens, heads, dim, pages, page_tokens, pairs;
};

template <class T>
void test_shape(const Shape &s) {
  Random<T> random;
  Random<float> angles;
  Tensor<T> q({s.frames, s.tokens, s.heads, s.dim}), out({s.frames, s.tokens, s.heads, s.dim}, not_a_number<T>());
  Tensor<T> k({s.pages, s.page_tokens, s.heads, s.dim}), v({s.pages, s.page_tokens, s.heads, s.dim});
  random.fill(q);
  random.fill(k);
  random.fill(v);
  Tensor<float> rotation({s.pages, s.frames, s.heads, s.pairs, 2}), bias({s.pages, s.heads}),
      mass({s.pages, s.frames, s.heads}, NAN);
  angles.fill(rotation);
  for (size_t i = 0; i + 1 < rotation.values.size(); i += 2) {
    const float angle = rotation.values[i];
    rotation.values[i] = std::cos(angle);
    rotation.values[i + 1] = std::sin(angle);
  }
  angles.fill(bias);
  if (s.pages > 1) bias[0] = -INFINITY;

  int64_t elements = 0;
  CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype_of<T>(), s.page_tokens, s.heads, s.dim, &elements));
  Tensor<T> pages({s.pages + 1, elements}, not_a_number<T>());  // one page is never written
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
  desc.struct_size = sizeof desc;
  desc.q = &q;
  desc.pages = &pages;
  desc.page_table = &table;
  desc.page_tokens = s.page_tokens;
  desc.rotation = &rotation;
  desc.bias = &bias;
  desc.out = &out;
  desc.mass = &mass;
  CHECK_OK(lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes));
  desc.workspace = std::aligned_alloc(64, desc.workspace_bytes);
  CHECK_OK(lolrt_frame_attention(&desc));
  std::free(desc.workspace);

  const double allowed = sizeof(T) == 4 ? 4e-6 : 4e-2;
  for (int64_t f = 0; f < s.frames; ++f) {
    for (int64_t h = 0; h < s.heads; ++h) {
      std::vector<double> page_mass(static_cast<size_t>(s.pages));
      for (int64_t t = 0; t < s.tokens; ++t) {
        const T *query = &q[((f * s.tokens + t) * s.heads + h) * s.dim];
        std::vector<double> expected(static_cast<size_t>(s.dim));
        std::vector<double> weights;
        double sum = 0.0;
        for (int64_t p = 0; p < s.pages; ++p) {
          std::vector<double> turned(static_cast<size_t>(s.dim));
          for (int64_t c = 0; c < s.dim; ++c) turned[c] = to_float(query[c]);
          for (int64_t i = 0; i < s.pairs; ++i) {
            const float *angle = &rotation[(((p * s.frames + f) * s.heads + h) * s.pairs + i) * 2];
            const double even = turned[2 * i], odd = turned[2 * i + 1];
            turned[2 * i] = even * angle[0] - odd * angle[1];
            turned[2 * i + 1] = even * angle[1] + odd * angle[0];
          }
          for (int64_t token = 0; token < s.page_tokens; ++token) {
            double score = 0.0;
            for (int64_t c = 0; c < s.dim; ++c)
              score += turned[c] * to_float(k[((p * s.page_tokens + token) * s.heads + h) * s.dim + c]);
            weights.push_back(std::exp(score / std::sqrt(s.dim) + bias[p * s.heads + h]));
            sum += weights.back();
          }
        }
        for (int64_t p = 0; p < s.pages; ++p) {
          for (int64_t token = 0; token < s.page_tokens; ++token) {
            const double weight = sum > 0 ? weights[p * s.page_tokens + token] / sum : 0.0;
            page_mass[p] += weight / static_cast<double>(s.tokens);
            for (int64_t c = 0; c < s.dim; ++c)
              expected[c] += weight * to_float(v[((p * s.page_tokens + token) * s.heads + h) * s.dim + c]);
          }
        }
        for (int64_t c = 0; c < s.dim; ++c) {
          const double got = to_float(out[((f * s.tokens + t) * s.heads + h) * s.dim + c]);
          CHECK(std::fabs(got - expected[c]) <= allowed);
        }
      }
      for (int64_t p = 0; p < s.pages; ++p) CHECK(std::fabs(mass[(p * s.frames + f) * s.heads + h] - page_mass[p]) <= allowed);
    }
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

// A batch with gaps, shared pages and an entry without pages: each entry has the bits that it has alone. Page 0 is in no row, and
// whatever must not be read is NaN.
template <class T>
void test_batch(int64_t frames, int64_t tokens, int64_t heads, int64_t dim, int64_t page_tokens, int64_t pairs) {
  constexpr int64_t batch = 4, columns = 3;
  constexpr int32_t rows[batch][columns] = {{1, -1, 3}, {-1, -1, -1}, {2, 3, 1}, {-1, 4, -1}};
  Random<T> random;
  Random<float> numbers;
  Tensor<T> q({batch * frames, tokens, heads, dim}), out({batch * frames, tokens, heads, dim}, not_a_number<T>());
  Tensor<T> k({4, page_tokens, heads, dim}), v({4, page_tokens, heads, dim});
  random.fill(q);
  random.fill(k);
  random.fill(v);
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
  numbers.fill(rotation);
  numbers.fill(bias);
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

// RMSNorm, weight and rotation, and the norm, at sizes that end in the middle of a vector.
template <class T>
void test_rows(int64_t tokens, int64_t heads, int64_t dim, int64_t pairs, int64_t first) {
  Random<T> random;
  Tensor<T> q({2, tokens, heads, dim}), q_out({2, tokens, heads, dim}, not_a_number<T>()), weight({heads, dim});
  random.fill(q);
  random.fill(weight);
  Tensor<float> rotation({tokens, pairs, 2}, 0.6f);
  for (size_t i = 1; i < rotation.values.size(); i += 2) rotation.values[i] = 0.8f;
  lolrt_kv_write_desc write{};
  write.struct_size = sizeof write;
  write.eps = 1e-6f;
  write.q = &q;
  write.q_weight = &weight;
  write.q_out = &q_out;
  write.rotation = &rotation;
  write.rotation_first_channel = first;
  CHECK_OK(lolrt_kv_write(&write));
  const double allowed = sizeof(T) == 4 ? 1e-5 : 1e-1;
  for (int64_t row = 0; row < 2 * tokens; ++row) {
    double squares = 0.0;
    for (int64_t c = 0; c < heads * dim; ++c) squares += std::pow(to_float(q[row * heads * dim + c]), 2.0);
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(heads * dim) + 1e-6);
    const auto normed = [&](int64_t c) { return to_float(q[row * heads * dim + c]) * inverse * to_float(weight[c]); };
    for (int64_t c = 0; c < heads * dim; ++c) {
      const int64_t channel = c % dim - first;
      double expected = normed(c);
      if (channel >= 0 && channel < 2 * pairs) {
        expected = channel % 2 ? 0.6 * normed(c) + 0.8 * normed(c - 1) : 0.6 * normed(c) - 0.8 * normed(c + 1);
      }
      CHECK(std::fabs(to_float(q_out[row * heads * dim + c]) - expected) <= allowed);
    }
  }

  const int64_t channels = heads * dim;
  Tensor<T> x({2, tokens, channels}), residual({2, tokens, channels}), out({2, tokens, channels});
  random.fill(x);
  random.fill(residual);
  Tensor<float> gate({2, channels}, 0.5f), scale({1, channels}, 1.5f), shift({2, channels}, -1.0f);
  const std::vector<T> before = x.values;
  const lolrt_modulated_norm_desc norm{sizeof norm, 1e-6f, &x, &residual, &gate, &scale, &shift, &out, nullptr};
  CHECK_OK(lolrt_modulated_norm(&norm));
  for (int64_t row = 0; row < 2 * tokens; ++row) {
    double mean = 0.0, variance = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = row * channels + c;
      CHECK(std::fabs(to_float(x[i]) - (to_float(before[i]) + 0.5 * to_float(residual[i]))) <= allowed / 4);
      mean += to_float(x[i]) / static_cast<double>(channels);
    }
    for (int64_t c = 0; c < channels; ++c)
      variance += std::pow(to_float(x[row * channels + c]) - mean, 2.0) / static_cast<double>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const double expected = (to_float(x[row * channels + c]) - mean) / std::sqrt(variance + 1e-6) * 1.5 - 1.0;
      CHECK(std::fabs(to_float(out[row * channels + c]) - expected) <= allowed);
    }
  }

  const std::vector<T> linear = x.values;
  const lolrt_gelu_desc gelu{sizeof gelu, &x, nullptr};
  CHECK_OK(lolrt_gelu(&gelu));
  for (size_t i = 0; i < linear.size(); ++i) {
    const double from = to_float(linear[i]);
    const double expected = from / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (from + 0.044715 * std::pow(from, 3))));
    CHECK(std::fabs(to_float(x.values[i]) - expected) <= allowed / 4);
  }
}

// The decoder's ops, with exact buffers for inputs and outputs.
template <class T>
void test_channel_norm(int64_t columns, int64_t channels, int64_t margin) {
  Random<T> random;
  Tensor<T> x({2, 3, columns, channels}), out({2, 3 + 2 * margin, columns + 2 * margin, channels}, not_a_number<T>());
  random.fill(x);
  Tensor<float> gamma({channels}, 1.5f);
  const lolrt_channel_norm_desc desc{sizeof desc, 1, &x, &gamma, &out};
  CHECK_OK(lolrt_channel_norm(&desc));
  const double allowed = sizeof(T) == 4 ? 1e-5 : 1e-1;
  for (int64_t i = 0; i < static_cast<int64_t>(out.values.size()) / channels; ++i) {
    const int64_t column = i % (columns + 2 * margin) - margin, row = i / (columns + 2 * margin) % (3 + 2 * margin) - margin;
    const int64_t frame = i / (columns + 2 * margin) / (3 + 2 * margin);
    const bool inside = row >= 0 && row < 3 && column >= 0 && column < columns;
    const T *pixel = inside ? &x[((frame * 3 + row) * columns + column) * channels] : nullptr;
    double squares = 0.0;
    for (int64_t c = 0; inside && c < channels; ++c) squares += std::pow(to_float(pixel[c]), 2.0);
    for (int64_t c = 0; c < channels; ++c) {
      const double y = inside ? to_float(pixel[c]) * 1.5 * std::sqrt(static_cast<double>(channels) / squares) : 0.0;
      CHECK(std::fabs(to_float(out[i * channels + c]) - y / (1 + std::exp(-y))) <= allowed);
    }
  }
}

void test_conv3d(int64_t columns, int64_t in, int64_t out_channels) {
  Random<float> random;
  Tensor<float> past({2, 4, columns + 2, in}), x({2, 4, columns + 2, in}), residual({2, 2, columns, out_channels});
  const int64_t blocks = (out_channels + 15) / 16;
  Tensor<float> weight({blocks, 3, 3, 3, in, 16}), bias({blocks, 16}), out({2, 2, columns, out_channels}, NAN);
  random.fill(past);
  random.fill(x);
  random.fill(residual);
  random.fill(weight);
  random.fill(bias);
  const lolrt_conv3d_desc desc{sizeof desc, &past, &x, &weight, &bias, &residual, &out};
  CHECK_OK(lolrt_conv3d(&desc));
  for (int64_t i = 0; i < static_cast<int64_t>(out.values.size()); ++i) {
    const int64_t channel = i % out_channels, column = i / out_channels % columns, row = i / out_channels / columns % 2;
    const int64_t frame = i / out_channels / columns / 2;
    double expected = bias[channel] + residual[i];
    for (int64_t tap = 0; tap < 27; ++tap) {
      const int64_t from = frame + tap / 9;
      Tensor<float> &image = from < 2 ? past : x;
      const int64_t pixel = ((from % 2) * 4 + row + tap / 3 % 3) * (columns + 2) + column + tap % 3;
      for (int64_t c = 0; c < in; ++c)
        expected += image[pixel * in + c] * weight[(((channel / 16) * 27 + tap) * in + c) * 16 + channel % 16];
    }
    CHECK(std::fabs(out[i] - expected) <= 2e-4);
  }
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
    }
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
    }
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
