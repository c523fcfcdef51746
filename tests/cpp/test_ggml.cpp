// Nodes of a ggml graph (lolrt/ggml.hpp) against calls of the ops: the same bits, in both types, with and without each table, for
// tensors that are parts of others; and what is told when a node cannot be computed.
#include "check.h"

#include <ggml-cpu.h>
#include <lolrt/ggml.hpp>

#include <cmath>
#include <cstring>

namespace {

constexpr int64_t FRAMES = 2, TOKENS = 21, HEADS = 3, DIM = 16, PAIRS = 5, PAGES = 3, POOL = 5;

struct Graph {
  Graph(ggml_type type, bool with_rotation, bool with_bias) : type(type) {
    const lolrt_dtype dtype = type == GGML_TYPE_F32 ? float32() : bfloat16();
    CHECK_OK(lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, TOKENS, HEADS, DIM, &elements));
    // q, k and v lie side by side for each token, as the output of one linear layer does.
    qkv = ggml_new_tensor_4d(context, type, DIM, 3 * HEADS, TOKENS, FRAMES);
    fill(qkv, 0);
    for (int i = 0; i < 3; ++i) {
      part[i] = ggml_view_4d(context, qkv, DIM, HEADS, TOKENS, FRAMES, qkv->nb[1], qkv->nb[2], qkv->nb[3],
                             static_cast<size_t>(i * HEADS) * qkv->nb[1]);
    }
    pages = ggml_new_tensor_2d(context, type, elements, POOL);
    std::memset(pages->data, 0, ggml_nbytes(pages));
    written = ggml_new_tensor_1d(context, GGML_TYPE_I32, FRAMES);
    read = ggml_new_tensor_1d(context, GGML_TYPE_I32, PAGES);
    const int32_t tables[] = {4, 1, 1, -1, 4};
    std::memcpy(written->data, tables, FRAMES * sizeof(int32_t));
    std::memcpy(read->data, tables + FRAMES, PAGES * sizeof(int32_t));
    if (with_rotation) fill(rotation = ggml_new_tensor_4d(context, GGML_TYPE_F32, 2, PAIRS, HEADS, PAGES * FRAMES), 1);
    if (with_bias) fill(bias = ggml_new_tensor_2d(context, GGML_TYPE_F32, HEADS, PAGES), 2);
  }
  ~Graph() { ggml_free(context); }

  void fill(ggml_tensor *tensor, int64_t key) {
    std::vector<float> drawn(static_cast<size_t>(ggml_nelements(tensor)));
    int64_t shape[] = {ggml_nelements(tensor)};
    const lolrt_tensor view{drawn.data(), {LOLRT_DEVICE_CPU, 0}, 1, float32(), shape, nullptr, 0};
    CHECK_OK(lolrt_normal(3, key, 0, &view));
    if (tensor->type == GGML_TYPE_F32) std::memcpy(tensor->data, drawn.data(), ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_BF16) ggml_fp32_to_bf16_row(drawn.data(), static_cast<ggml_bf16_t *>(tensor->data), shape[0]);
  }

  void compute(const lolrt::ggml::KvWrite &write, const lolrt::ggml::FrameAttention &attention, int threads) {
    ggml_cgraph *graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, write.out());
    ggml_build_forward_expand(graph, attention.out());
    CHECK(ggml_graph_compute_with_ctx(context, graph, threads) == GGML_STATUS_SUCCESS);
  }

  ggml_type type;
  int64_t elements = 0;
  ggml_context *context = ggml_init({size_t(16) << 20, nullptr, false});
  ggml_tensor *qkv, *part[3], *pages, *written, *read, *rotation = nullptr, *bias = nullptr;
};

// The same by calls of the ops, on copies.
std::vector<char> called(const Graph &graph) {
  const lolrt_dtype dtype = graph.type == GGML_TYPE_F32 ? float32() : bfloat16();
  std::vector<char> pages(ggml_nbytes(graph.pages) + 64),
      out(static_cast<size_t>(FRAMES * TOKENS * HEADS * DIM) * ggml_type_size(graph.type));
  char *aligned = pages.data() + (64 - reinterpret_cast<uintptr_t>(pages.data()) % 64) % 64;
  int64_t shape[] = {FRAMES, TOKENS, HEADS, DIM}, strides[] = {3 * TOKENS * HEADS * DIM, 3 * HEADS * DIM, DIM, 1};
  int64_t pages_shape[] = {POOL, graph.elements}, written_shape[] = {FRAMES}, read_shape[] = {PAGES},
          bias_shape[] = {PAGES, HEADS};
  int64_t rotation_shape[] = {PAGES, FRAMES, HEADS, PAIRS, 2};
  const auto view = [](void *data, lolrt_dtype dtype, int rank, int64_t *shape, int64_t *strides = nullptr) {
    return lolrt_tensor{data, {LOLRT_DEVICE_CPU, 0}, rank, dtype, shape, strides, 0};
  };
  const lolrt_tensor q = view(graph.part[0]->data, dtype, 4, shape, strides),
                     k = view(graph.part[1]->data, dtype, 4, shape, strides);
  const lolrt_tensor v = view(graph.part[2]->data, dtype, 4, shape, strides), pages_view = view(aligned, dtype, 2, pages_shape);
  const lolrt_tensor written = view(graph.written->data, dtype_of<int32_t>(), 1, written_shape);
  const lolrt_tensor read = view(graph.read->data, dtype_of<int32_t>(), 1, read_shape),
                     out_view = view(out.data(), dtype, 4, shape);
  lolrt_kv_write_desc write{};
  write.struct_size = sizeof write;
  write.k = &k, write.v = &v, write.pages = &pages_view, write.page_table = &written;
  CHECK_OK(lolrt_kv_write(&write));
  lolrt_frame_attention_desc attention{};
  attention.struct_size = sizeof attention;
  attention.q = &q, attention.pages = &pages_view, attention.page_table = &read, attention.page_tokens = TOKENS,
  attention.out = &out_view;
  lolrt_tensor rotation{}, bias{};
  if (graph.rotation) rotation = view(graph.rotation->data, float32(), 5, rotation_shape), attention.rotation = &rotation;
  if (graph.bias) bias = view(graph.bias->data, float32(), 2, bias_shape), attention.bias = &bias;
  CHECK_OK(lolrt_frame_attention_workspace(&attention, &attention.workspace_bytes));
  std::vector<char> workspace(attention.workspace_bytes + 64);
  attention.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
  CHECK_OK(lolrt_frame_attention(&attention));
  return out;
}

void nodes_have_the_bits_of_calls() {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_BF16}) {
    for (int tables = 0; tables < 4; ++tables) {
      for (const int threads : {1, 3, 6}) {  // more than the library was told of
        Graph graph(type, tables & 1, tables & 2);
        lolrt::ggml::KvWrite write(graph.context, graph.part[1], graph.part[2], graph.pages, graph.written);
        lolrt::ggml::FrameAttention attention(graph.context, graph.part[0], write.out(), graph.read, TOKENS, graph.rotation,
                                              graph.bias);
        const std::vector<char> expected = called(graph);
        for (int again = 0; again < 3; ++again) {
          std::memset(attention.out()->data, 0, ggml_nbytes(attention.out()));
          graph.compute(write, attention, threads);
          write.check();
          attention.check();
          CHECK(ggml_nbytes(attention.out()) == expected.size());
          CHECK(std::memcmp(attention.out()->data, expected.data(), expected.size()) == 0);
          CHECK(write.out()->data == graph.pages->data);
        }
      }
    }
  }
}

void a_node_that_failed_is_told_and_its_output_is_nan() {
  Graph graph(GGML_TYPE_F32, true, false);
  lolrt::ggml::KvWrite write(graph.context, graph.part[1], graph.part[2], graph.pages, graph.written);
  lolrt::ggml::FrameAttention attention(graph.context, graph.part[0], write.out(), graph.read, TOKENS, graph.rotation);
  auto *table = static_cast<int32_t *>(graph.read->data);
  for (const int32_t page : {POOL + 1, int64_t{1}}) {
    table[0] = page;
    graph.compute(write, attention, 2);
    std::string told;
    try {
      write.check();
      attention.check();
    } catch (const lolrt::ggml::Error &error) {
      told = error.what();
    }
    const auto *out = static_cast<const float *>(attention.out()->data);
    for (int64_t i = 0; i < ggml_nelements(attention.out()); ++i) CHECK(std::isnan(out[i]) == (page > POOL));
    CHECK((told.find("page_table") != std::string::npos) == (page > POOL));
  }
}

template <class Make>
bool refused(Make &&make, const char *text) {
  try {
    make();
  } catch (const lolrt::ggml::Error &error) {
    return std::strstr(error.what(), text) != nullptr;
  }
  return false;
}

void tensors_that_do_not_fit_are_refused() {
  Graph graph(GGML_TYPE_F32, true, true);
  ggml_context *context = graph.context;
  ggml_tensor *half = ggml_new_tensor_4d(context, GGML_TYPE_F16, DIM, HEADS, TOKENS, FRAMES), *q = graph.part[0],
              *pages = graph.pages;
  ggml_tensor *fewer = ggml_new_tensor_4d(context, GGML_TYPE_F32, 2, PAIRS, HEADS, PAGES * FRAMES - 1);
  using lolrt::ggml::FrameAttention;
  using lolrt::ggml::KvWrite;
  CHECK(refused([&] { FrameAttention node(context, half, pages, graph.read, TOKENS); }, "q and pages: expected"));
  CHECK(refused([&] { FrameAttention node(context, q, pages, graph.bias, TOKENS); }, "page_table: expected GGML_TYPE_I32"));
  CHECK(refused([&] { FrameAttention node(context, q, pages, graph.read, TOKENS, half); }, "rotation and bias: expected"));
  CHECK(refused([&] { FrameAttention node(context, q, pages, graph.read, TOKENS, fewer); }, "rotation: expected"));
  CHECK(refused([&] { KvWrite node(context, half, half, pages, graph.written); }, "k, v and pages: expected"));
  CHECK(refused([&] { KvWrite node(context, q, graph.qkv, pages, graph.written); }, "k and v: expected the same shape"));
}

// ggml counts strides in bytes and has always four dimensions.
void strides_within_elements_and_further_dimensions_are_refused() {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_BF16}) {
    Graph graph(type, false, true);
    ggml_context *context = graph.context;
    ggml_tensor *q = graph.part[0], *pages = graph.pages, *bias = graph.bias;
    using lolrt::ggml::FrameAttention;
    using lolrt::ggml::KvWrite;
    // No memory is read before it is refused.
    const auto shifted = [&](ggml_tensor *x, int dim) {
      ggml_tensor *made = ggml_view_4d(context, x, x->ne[0], x->ne[1], x->ne[2], x->ne[3], x->nb[1], x->nb[2], x->nb[3], 0);
      made->nb[dim] += 1;
      return made;
    };
    ggml_tensor *deep = ggml_new_tensor_3d(context, type, graph.elements, 1, 2),
                *wide = ggml_new_tensor_2d(context, GGML_TYPE_I32, PAGES, 2),
                *many = ggml_new_tensor_4d(context, GGML_TYPE_F32, HEADS, PAGES, 1, 2);
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
      const std::string nb = "nb[" + std::to_string(dim) + "] is ";
      const auto told = [&](const char *name) { return name + (": " + nb); };
      CHECK(refused([&] { KvWrite node(context, shifted(q, dim), q, pages, graph.written); }, told("k").c_str()));
      CHECK(refused([&] { KvWrite node(context, q, shifted(q, dim), pages, graph.written); }, told("v").c_str()));
      CHECK(refused([&] { FrameAttention node(context, shifted(q, dim), pages, graph.read, TOKENS); }, told("q").c_str()));
      if (dim > 1) continue;
      CHECK(refused([&] { KvWrite node(context, q, q, shifted(pages, dim), graph.written); }, told("pages").c_str()));
      CHECK(refused([&] { FrameAttention node(context, q, shifted(pages, dim), graph.read, TOKENS); }, told("pages").c_str()));
      CHECK(refused([&] { FrameAttention node(context, q, pages, graph.read, TOKENS, nullptr, shifted(bias, dim)); },
                    told("bias").c_str()));
    }
    CHECK(refused([&] { KvWrite node(context, q, q, pages, shifted(graph.written, 0)); }, "page_table: nb[0] is 5"));
    CHECK(refused([&] { KvWrite node(context, q, q, deep, graph.written); }, "pages: expected 2 dimensions, but ne[2] is 2"));
    CHECK(refused([&] { KvWrite node(context, q, q, pages, wide); }, "page_table: expected 1 dimensions, but ne[1] is 2"));
    CHECK(refused([&] { FrameAttention node(context, q, deep, graph.read, TOKENS); }, "pages: expected 2 dimensions"));
    CHECK(refused([&] { FrameAttention node(context, q, pages, wide, TOKENS); }, "page_table: expected 1 dimensions"));
    CHECK(refused([&] { FrameAttention node(context, q, pages, graph.read, TOKENS, nullptr, many); }, "but ne[3] is 2"));
    ggml_tensor *no_heads = ggml_new_tensor_4d(context, type, DIM, 0, TOKENS, FRAMES),
                *no_pages = ggml_new_tensor_2d(context, type, graph.elements, 0);
    CHECK(refused([&] { FrameAttention node(context, no_heads, pages, graph.read, TOKENS); }, "q: expected sizes of 1 or more"));
    CHECK(refused([&] { KvWrite node(context, no_heads, no_heads, pages, graph.written); }, "k: expected sizes of 1 or more"));
    CHECK(refused([&] { KvWrite node(context, q, q, no_pages, graph.written); },
                  "pages: expected sizes of 1 or more, but ne[1] is 0"));
    ggml_tensor *one = ggml_view_2d(context, pages, graph.elements, POOL, 0, 0);  // all pages in one
    CHECK(refused([&] { KvWrite node(context, q, q, one, graph.written); }, "pages: expected pages that do not overlap"));
  }
}

}  // namespace

int main() {
  lolrt::ggml::use_threads(4);
  nodes_have_the_bits_of_calls();
  a_node_that_failed_is_told_and_its_output_is_nan();
  tensors_that_do_not_fit_are_refused();
  strides_within_elements_and_further_dimensions_are_refused();
  return failures == 0 ? 0 : 1;
}
