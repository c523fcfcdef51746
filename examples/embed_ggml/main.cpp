// lolrt in a ggml graph: a self-attention layer whose keys and values stay in pages.
//
//     embed [threads]
//
// Each frame runs the same graph: projections by ggml, K and V into the frame's page, attention to the window, and the output's
// projection by ggml. Between two frames only inputs change: the tokens, which page is written, which are read, and the
// rotations. Every frame is compared with the formula in double precision. Prints a line; returns 0 if they agree.
#include <ggml-cpu.h>
#include <lolrt/ggml.hpp>

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <vector>

namespace {

constexpr int64_t TOKENS = 40, HEADS = 4, DIM = 32, WIDTH = HEADS * DIM, PAIRS = 8, SINKS = 1, RECENT = 3, PAGES = SINKS + RECENT,
                  FRAMES = 12;

void require(lolrt_status status) {
  if (status != LOLRT_OK) throw lolrt::ggml::Error(lolrt_last_error());
}

float *floats(ggml_tensor *tensor) { return static_cast<float *>(tensor->data); }

// Draws of the standard normal distribution, scaled.
void draw(ggml_tensor *tensor, int64_t key, float scale) {
  int64_t shape[] = {ggml_nelements(tensor)};
  lolrt_tensor view{};
  view.data = tensor->data;
  view.device.type = LOLRT_DEVICE_CPU;
  view.ndim = 1;
  view.dtype = {LOLRT_CODE_FLOAT, 32, 1};
  view.shape = shape;
  require(lolrt_normal(7, key, 0, &view));
  for (int64_t i = 0; i < shape[0]; ++i) floats(tensor)[i] *= scale;
}

// The layer in double precision, from the tokens of all frames that are in the window.
struct Reference {
  const float *weights[4];                // of q, k, v and the output
  std::vector<std::vector<double>> k, v;  // by frame

  static std::vector<double> project(const float *weight, const std::vector<double> &x) {
    std::vector<double> y(TOKENS * WIDTH, 0.0);
    for (int64_t t = 0; t < TOKENS; ++t)
      for (int64_t o = 0; o < WIDTH; ++o)
        for (int64_t i = 0; i < WIDTH; ++i) y[t * WIDTH + o] += double(weight[o * WIDTH + i]) * x[t * WIDTH + i];
    return y;
  }

  std::vector<double> next(const float *tokens, const std::vector<int64_t> &window, const float *rotation) {
    const std::vector<double> x(tokens, tokens + TOKENS * WIDTH), q = project(weights[0], x);
    k.push_back(project(weights[1], x));
    v.push_back(project(weights[2], x));
    std::vector<double> attended(TOKENS * WIDTH, 0.0);
    for (int64_t head = 0; head < HEADS; ++head) {
      for (int64_t t = 0; t < TOKENS; ++t) {
        double sum = 0.0;
        double *out = &attended[t * WIDTH + head * DIM];
        for (size_t page = 0; page < window.size(); ++page) {
          std::vector<double> turned(&q[t * WIDTH + head * DIM], &q[t * WIDTH + head * DIM] + DIM);
          for (int64_t pair = 0; pair < PAIRS; ++pair) {
            const float *angle = rotation + ((page * HEADS + head) * PAIRS + pair) * 2;
            const double even = turned[2 * pair], odd = turned[2 * pair + 1];
            turned[2 * pair] = even * angle[0] - odd * angle[1];
            turned[2 * pair + 1] = even * angle[1] + odd * angle[0];
          }
          for (int64_t key = 0; key < TOKENS; ++key) {
            const double *keys = &k[window[page]][key * WIDTH + head * DIM], *values = &v[window[page]][key * WIDTH + head * DIM];
            double score = 0.0;
            for (int64_t c = 0; c < DIM; ++c) score += turned[c] * keys[c];
            const double weight = std::exp(score / std::sqrt(double(DIM)));
            sum += weight;
            for (int64_t c = 0; c < DIM; ++c) out[c] += weight * values[c];
          }
        }
        for (int64_t c = 0; c < DIM; ++c) out[c] /= sum;
      }
    }
    return project(weights[3], attended);
  }
};

void run(int threads) {
  lolrt::ggml::use_threads(threads);
  int64_t elements = 0;
  require(lolrt_page_elements(LOLRT_DEVICE_CPU, {LOLRT_CODE_FLOAT, 32, 1}, TOKENS, HEADS, DIM, &elements));
  ggml_context *context = ggml_init({size_t(64) << 20, nullptr, false});

  // What lasts from frame to frame.
  ggml_tensor *weights[4];
  for (int i = 0; i < 4; ++i)
    draw(weights[i] = ggml_new_tensor_2d(context, GGML_TYPE_F32, WIDTH, WIDTH), i, 1 / std::sqrt(float(WIDTH)));
  ggml_tensor *pages = ggml_new_tensor_2d(context, GGML_TYPE_F32, elements, PAGES);
  // The inputs of a frame. Pages that are not there yet are -1.
  ggml_tensor *x = ggml_new_tensor_2d(context, GGML_TYPE_F32, WIDTH, TOKENS);
  ggml_tensor *read = ggml_new_tensor_1d(context, GGML_TYPE_I32, PAGES), *written = ggml_new_tensor_1d(context, GGML_TYPE_I32, 1);
  ggml_tensor *rotation = ggml_new_tensor_4d(context, GGML_TYPE_F32, 2, PAIRS, HEADS, PAGES);

  // The graph.
  ggml_tensor *projected[3];
  for (int i = 0; i < 3; ++i)
    projected[i] = ggml_reshape_4d(context, ggml_mul_mat(context, weights[i], x), DIM, HEADS, TOKENS, 1);
  lolrt::ggml::KvWrite write(context, projected[1], projected[2], pages, written);
  lolrt::ggml::FrameAttention attention(context, projected[0], write.out(), read, TOKENS, rotation);
  ggml_tensor *out = ggml_mul_mat(context, weights[3], ggml_reshape_2d(context, attention.out(), WIDTH, TOKENS));
  ggml_cgraph *graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, out);
  ggml_threadpool_params pool_params = ggml_threadpool_params_default(threads);
  ggml_threadpool *pool = ggml_threadpool_new(&pool_params);
  ggml_cplan plan = ggml_graph_plan(graph, threads, pool);
  std::vector<uint8_t> work(plan.work_size);
  plan.work_data = work.data();

  // The window, and frequencies of their own for each head.
  lolrt_pool *free_pages = nullptr;
  lolrt_window *window = nullptr;
  require(lolrt_pool_create(PAGES, &free_pages));
  require(lolrt_window_create(free_pages, SINKS, RECENT, &window));
  double radians[HEADS * PAIRS];
  uint64_t turns[HEADS * PAIRS];
  for (int64_t i = 0; i < HEADS * PAIRS; ++i) radians[i] = 1.0 / (1 + i);
  require(lolrt_phase_increments(radians, turns, HEADS * PAIRS));

  Reference reference{{floats(weights[0]), floats(weights[1]), floats(weights[2]), floats(weights[3])}, {}, {}};
  double error = 0.0;
  uint64_t digest = 14695981039346656037u;  // FNV-1a of all output
  for (int64_t frame = 0; frame < FRAMES; ++frame) {
    draw(x, 100 + frame, 1.0f);
    require(lolrt_window_advance(window, frame, 1));
    const int64_t size = lolrt_window_size(window);
    std::vector<int64_t> frames(size), offsets(size);
    auto *table = static_cast<int32_t *>(read->data);
    require(lolrt_window_read(window, table, frames.data(), size));
    for (int64_t i = size; i < PAGES; ++i) table[i] = -1;
    *static_cast<int32_t *>(written->data) = table[size - 1];
    for (int64_t i = 0; i < size; ++i) offsets[i] = frame - frames[i];
    int64_t turns_shape[] = {HEADS, PAIRS}, offsets_shape[] = {size, 1}, rotation_shape[] = {size, 1, HEADS, PAIRS, 2};
    const lolrt_tensor turns_view{turns, {LOLRT_DEVICE_CPU, 0}, 2, {LOLRT_CODE_UINT, 64, 1}, turns_shape, nullptr, 0};
    const lolrt_tensor offsets_view{offsets.data(), {LOLRT_DEVICE_CPU, 0}, 2, {LOLRT_CODE_INT, 64, 1}, offsets_shape, nullptr, 0};
    const lolrt_tensor rotation_view{
        rotation->data, {LOLRT_DEVICE_CPU, 0}, 5, {LOLRT_CODE_FLOAT, 32, 1}, rotation_shape, nullptr, 0};
    require(lolrt_rotation_table(&turns_view, &offsets_view, &rotation_view));

    if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) throw lolrt::ggml::Error("ggml could not compute the graph");
    write.check();
    attention.check();
    const std::vector<double> expected = reference.next(floats(x), frames, floats(rotation));
    for (size_t i = 0; i < expected.size(); ++i) error = std::fmax(error, std::fabs(floats(out)[i] - expected[i]));
    const auto *bytes = static_cast<const uint8_t *>(out->data);
    for (size_t i = 0; i < ggml_nbytes(out); ++i) digest = (digest ^ bytes[i]) * 1099511628211u;
  }

  const auto tasks = std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
  std::printf("%" PRId64 " frames on %d threads of %td in the process: %016" PRIx64
              ", largest difference to double precision %.1e\n",
              FRAMES, threads, tasks, digest, error);
  lolrt_window_destroy(window);
  lolrt_pool_destroy(free_pages);
  ggml_threadpool_free(pool);
  ggml_free(context);
  if (!(error < 1e-5)) throw lolrt::ggml::Error("they do not agree");
}

}  // namespace

int main(int count, char **arguments) {
  try {
    run(count > 1 ? std::atoi(arguments[1]) : 2);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
