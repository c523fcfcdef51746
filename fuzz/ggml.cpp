// Fuzzes the nodes for ggml: whatever tensors a graph has, a node is refused when it is made, or the graph is computed and
// `check()` says why a node failed, and nothing else is touched. ggml computes the graphs.
//
// With ggml's source (`make .venv/ggml`), the folder ggml of llama.cpp in it as GGML, and its libraries under the same
// sanitizers:
//
//     cmake -S examples/embed_ggml -B build/fuzz_ggml -DGGML_SOURCE=$GGML -DCMAKE_PREFIX_PATH=$PWD/lolrt -DBUILD_SHARED_LIBS=OFF
//       -DGGML_NATIVE=OFF -DGGML_LLAMAFILE=OFF -DCMAKE_C_FLAGS=-fsanitize=address,undefined
//       -DCMAKE_CXX_FLAGS=-fsanitize=address,undefined
//     cmake --build build/fuzz_ggml --target ggml
//     g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DSTANDALONE -Icsrc/include -Icsrc
//       -I$GGML/include -DLOLRT_VERSION='"0"' -DLOLRT_SHARED_HEADERS='"0"' fuzz/ggml.cpp csrc/core/*.cpp csrc/cpu/scalar.cpp
//       -Lbuild/fuzz_ggml/ggml/src -lggml -lggml-cpu -lggml-base -ldl -lm -o build/fuzz_ggml/fuzz
//     build/fuzz_ggml/fuzz INPUTS SEED
//
// With clang++ -fsanitize=fuzzer,address,undefined and without -DSTANDALONE, libFuzzer draws the bytes.
#include "calls.h"

#include <ggml-cpu.h>
#include <lolrt/ggml.hpp>

#include <optional>

using namespace fuzz;
using lolrt::ggml::FrameAttention;
using lolrt::ggml::KvWrite;

long calls = 0;

namespace {

// A graph whose tensors have the memory of a call's. No memory is ggml's own.
class Graph {
 public:
  explicit Graph(Bytes &bytes) : bytes_(bytes), context_(ggml_init({size_t{1} << 16, nullptr, true})) {}
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;
  ~Graph() { ggml_free(context_); }

  // A call's argument as ggml has it. NULL if there is none; `possible()` is false from a tensor on that no host makes.
  ggml_tensor *operator()(const Call &call, const char *name, int dims) {
    const lolrt_tensor *tensor = call.find(name)->tensor;
    if (tensor == nullptr) return nullptr;
    if (tensor->shape == nullptr || tensor->ndim < 1 || tensor->ndim > GGML_MAX_DIMS + 1) {
      possible_ = false;
      return nullptr;
    }
    ggml_tensor *made = ggml_new_tensor_1d(context_, type_of(tensor->dtype), 1);
    const size_t bytes = ggml_type_size(made->type), block = static_cast<size_t>(ggml_blck_size(made->type));
    size_t packed = bytes;
    double elements = 1;
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
      const int dim = tensor->ndim - 1 - i;
      made->ne[i] = dim < 0 ? 1 : tensor->shape[dim];
      // Of five dimensions, the two outermost are one here.
      if (i == GGML_MAX_DIMS - 1 && dim == 1 && __builtin_mul_overflow(made->ne[i], tensor->shape[0], &made->ne[i]))
        possible_ = false;
      made->nb[i] = dim < 0 || tensor->strides == nullptr ? packed : static_cast<size_t>(tensor->strides[dim]) * bytes;
      if (made->ne[i] > 1 && bytes_.rarely()) made->nb[i] += static_cast<size_t>(bytes_.below(9));
      packed *= static_cast<size_t>(std::max<int64_t>(made->ne[i], 1));
      elements *= static_cast<double>(made->ne[i]);
      if (made->ne[i] < 0 || elements > double(1 << 24))
        possible_ = false;  // no tensor, or more than its graph's output can have
      if (made->ne[i] < 1) to_be_refused_ = true;
      if (i >= dims && made->ne[i] != 1) to_be_refused_ = true;
      if (made->ne[i] > 1 && made->nb[i] % bytes != 0) to_be_refused_ = true;
    }
    if (block > 1 && made->ne[0] % static_cast<int64_t>(block) != 0) possible_ = false;
    give_memory(*made);
    return made;
  }

  bool possible() const { return possible_; }
  // Some stride or size is one that no node can take.
  bool to_be_refused() const { return to_be_refused_; }
  // No address space holds one of the tensors, and a computation must fail.
  bool impossible() const { return impossible_; }
  ggml_context *context() { return context_; }

  void compute(std::initializer_list<ggml_tensor *> outputs) {
    static ggml_threadpool *pool = [] {
      ggml_threadpool_params params = ggml_threadpool_params_default(1);
      return ggml_threadpool_new(&params);
    }();
    ggml_cgraph *graph = ggml_new_graph_custom(context_, 16, false);
    for (ggml_tensor *output : outputs) {
      if (output == nullptr) continue;
      if (output->view_src == nullptr) output->data = own(ggml_nbytes(output));
      ggml_build_forward_expand(graph, output);
    }
    ggml_cplan plan = ggml_graph_plan(graph, 1, pool);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) fail("ggml", "a graph was not computed");
  }

 private:
  ggml_type type_of(lolrt_dtype dtype) {
    const auto is = [&](lolrt_dtype other) { return std::memcmp(&dtype, &other, sizeof dtype) == 0; };
    if (is(kFloat32)) return GGML_TYPE_F32;
    if (is(kBfloat16)) return GGML_TYPE_BF16;
    if (is(kInt32)) return GGML_TYPE_I32;
    const auto any = static_cast<ggml_type>(bytes_.below(GGML_TYPE_COUNT));
    return ggml_type_size(any) > 0 ? any : GGML_TYPE_F16;
  }

  // Exactly the span that sizes and strides claim, or none.
  void give_memory(ggml_tensor &tensor) {
    __int128 span = static_cast<__int128>(ggml_type_size(tensor.type));
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
      if (tensor.ne[i] > 1) span += (static_cast<__int128>(tensor.ne[i]) - 1) * static_cast<__int128>(tensor.nb[i]);
    }
    if (span > static_cast<__int128>(kMostBytes)) {
      impossible_ = impossible_ || span > INT64_MAX;
      tensor.data = span > INT64_MAX ? reinterpret_cast<void *>(64) : nullptr;
      return;
    }
    const size_t offset = bytes_.rarely() ? static_cast<size_t>(bytes_.below(9)) : 0;
    char *memory = own(static_cast<size_t>(span) + offset) + offset;
    tensor.data = memory;
    for (int32_t i = 0; tensor.type == GGML_TYPE_I32 && i < 4 && 4 * (i + 1) <= span; ++i) {
      const auto entry = static_cast<int32_t>(bytes_.or_number(i));
      std::memcpy(memory + 4 * i, &entry, sizeof entry);
    }
  }

  char *own(size_t bytes) { return memory_.emplace_back(new char[bytes]()).get(); }

  Bytes &bytes_;
  ggml_context *context_;
  std::list<std::unique_ptr<char[]>> memory_;
  bool possible_ = true, impossible_ = false, to_be_refused_ = false;
};

// Whether a node failed, and told why.
template <class Node>
bool failed(const std::optional<Node> &node) {
  if (!node) return false;
  try {
    node->check();
  } catch (const lolrt::ggml::Error &error) {
    if (std::strlen(error.what()) == 0) fail("ggml", "a node failed without a reason");
    return true;
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const bool one_thread = [] {
    lolrt::ggml::use_threads(1);
    return true;
  }();
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  const lolrt_dtype dtype = choice & 128 ? kBfloat16 : kFloat32;
  const bool writes = choice % 3 != 0, attends = choice % 3 != 1;
  Call write(bytes), attention(bytes);
  kv_write(bytes, write, dtype);
  frame_attention(bytes, attention, dtype);
  Graph graph(bytes);
  std::optional<KvWrite> writer;
  std::optional<FrameAttention> reader;
  try {
    ggml_tensor *pages = nullptr;
    if (writes) {
      ggml_tensor *k = graph(write, "k", 4), *v = graph(write, "v", 4), *table = graph(write, "page_table", 1);
      pages = graph(write, "pages", 2);
      if (!k || !v || !table || !pages || !graph.possible()) return 0;
      pages = writer.emplace(graph.context(), k, v, pages, table).out();
    }
    if (attends) {
      ggml_tensor *q = graph(attention, "q", 4), *table = graph(attention, "page_table", 1);
      if (!writes) pages = graph(attention, "pages", 2);
      ggml_tensor *rotation = graph(attention, "rotation", 4), *bias = graph(attention, "bias", 2);
      if (!q || !table || !pages || !graph.possible()) return 0;
      reader.emplace(graph.context(), q, pages, table, attention.find("page_tokens")->integer, rotation, bias);
    }
  } catch (const lolrt::ggml::Error &error) {
    if (std::strlen(error.what()) == 0) fail("ggml", "a node was refused without a reason");
    ++calls;
    return 0;
  }
  if (graph.to_be_refused()) fail("ggml", "a node took a tensor that it reads as another one");
  graph.compute({writer ? writer->out() : nullptr, reader ? reader->out() : nullptr});
  ++calls;
  const bool write_failed = failed(writer), read_failed = failed(reader);
  if (graph.impossible() && !write_failed && !read_failed) fail("ggml", "a tensor that no address space holds was taken");
  return 0;
}
