/* lolrt's attention over pages as nodes of a ggml graph, on the CPU. C++17, header only: link with lolrt and ggml.
 *
 * ggml writes shapes innermost first. Where lolrt.h says [frames, tokens, heads, dim], the ggml tensor has ne = {dim, heads,
 * tokens, frames}. Nothing is copied: ops read and write the memory of the graph's tensors. Tensors are GGML_TYPE_F32 or
 * GGML_TYPE_BF16, tables of pages GGML_TYPE_I32.
 *
 * A node belongs to an object, which has to live as long as the graph. ggml has no way for a node to fail: call `check()` when
 * the graph has been computed. The output of a `FrameAttention` that failed is NaN. */
#ifndef LOLRT_GGML_HPP
#define LOLRT_GGML_HPP

#include <ggml.h>
#include <lolrt/lolrt.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lolrt::ggml {

/* A tensor does not fit a node, or a call of lolrt failed; the text says why. */
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

template <class Context, class = void>
struct HasCustomNodes : std::false_type {};
template <class Context>
struct HasCustomNodes<Context, std::void_t<decltype(ggml_custom_4d(std::declval<Context *>(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr,
                                                                   0, nullptr, 1, nullptr))>> : std::true_type {};
static_assert(HasCustomNodes<ggml_context>::value,
              "lolrt/ggml.hpp needs ggml_custom_4d, which ggml has since the spring of 2025: build with a newer ggml");

/* The threads that compute a graph come to a node together. The first of them runs the op, and the others take tasks of its
 * loops. */
class Crew {
 public:
  template <class Op>
  void work(int thread, int threads, Op &&op) {
    if (thread > 0) {
      help(thread);
      return;
    }
    leading() = this;
    op();
    leading() = nullptr;
    std::unique_lock<std::mutex> lock(mutex_);
    over_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return left_ == threads - 1; });
    over_ = false;
    left_ = 0;
  }

  /* A `lolrt_parallel_for`. A call outside of a graph has its own thread alone. */
  static void run(void *, lolrt_task body, void *arg, int64_t tasks) {
    if (Crew *crew = leading()) {
      crew->loop(body, arg, tasks);
    } else {
      for (int64_t task = 0; task < tasks; ++task) body(arg, task, 0);
    }
  }

 private:
  static Crew *&leading() {
    thread_local Crew *crew = nullptr;
    return crew;
  }

  void loop(lolrt_task body, void *arg, int64_t tasks) {
    std::unique_lock<std::mutex> lock(mutex_);
    body_ = body, arg_ = arg, tasks_ = tasks, next_ = done_ = 0;
    changed_.notify_all();
    while (next_ < tasks_) take(lock, 0);
    changed_.wait(lock, [&] { return done_ == tasks_; });
  }

  void help(int thread) {
    const bool may = thread < lolrt_threads();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!over_) {
      if (may && next_ < tasks_) {
        take(lock, thread);
      } else {
        changed_.wait(lock);
      }
    }
    ++left_;
    changed_.notify_all();
  }

  void take(std::unique_lock<std::mutex> &lock, int32_t worker) {
    const int64_t task = next_++;
    const lolrt_task body = body_;
    void *const arg = arg_;
    lock.unlock();
    body(arg, task, worker);
    lock.lock();
    if (++done_ == tasks_) changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  lolrt_task body_ = nullptr;
  void *arg_ = nullptr;
  int64_t tasks_ = 0, next_ = 0, done_ = 0;
  int left_ = 0;
  bool over_ = false;
};

/* A ggml tensor as lolrt sees it. shape: outermost first; more dimensions than ggml has are for contiguous tensors. It throws
 * nothing, as all that runs in a graph: ggml is C. */
class View {
 public:
  View(const ggml_tensor *tensor, std::initializer_list<int64_t> shape) {
    const auto rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), shape_);
    if (rank <= GGML_MAX_DIMS) {
      for (int i = 0; i < rank; ++i) strides_[i] = static_cast<int64_t>(tensor->nb[rank - 1 - i] / ggml_type_size(tensor->type));
      view_.strides = strides_;
    }
    view_.data = tensor->data;
    view_.device.type = LOLRT_DEVICE_CPU;
    view_.ndim = rank;
    view_.dtype = {LOLRT_CODE_FLOAT, 32, 1};
    if (tensor->type == GGML_TYPE_BF16) view_.dtype = {LOLRT_CODE_BFLOAT, 16, 1};
    if (tensor->type == GGML_TYPE_I32) view_.dtype = {LOLRT_CODE_INT, 32, 1};
    view_.shape = shape_;
  }
  View(const View &) = delete;
  View &operator=(const View &) = delete;

  const lolrt_tensor *get() const { return &view_; }

 private:
  int64_t shape_[GGML_MAX_DIMS + 1] = {}, strides_[GGML_MAX_DIMS] = {};
  lolrt_tensor view_{};
};

inline void require(bool right, const char *expected) {
  if (!right) throw Error(expected);
}

/* Throws where a tensor is laid out otherwise in the ggml of this process than in the ggml.h that this program was built with. */
inline void require_same_ggml() {
  ggml_tensor probe{};
  probe.type = GGML_TYPE_F32;
  for (int i = 0; i < GGML_MAX_DIMS; ++i) probe.ne[i] = 2 + i, probe.nb[i] = size_t{4} << (8 * i);
  probe.data = &probe;
  /* These functions read type, ne, nb and data, and so know where they are, behind sources and the rest. */
  size_t bytes = 4;
  for (int i = 0; i < GGML_MAX_DIMS; ++i) bytes += static_cast<size_t>(1 + i) * probe.nb[i];
  require(ggml_get_data(&probe) == probe.data && ggml_nbytes(&probe) == bytes,
          "this program was built with another ggml.h than the ggml that it runs with: build both from one source");
}

/* Throws for what `View` would take for another tensor: more than `dims` dimensions, and strides within elements. And for empty
 * ones: ggml computes no node whose output is empty, and so nothing would tell of it. */
inline void require_dims(const char *name, const ggml_tensor *tensor, int dims) {
  const size_t bytes = ggml_type_size(tensor->type);
  for (int i = 0; i < GGML_MAX_DIMS; ++i) {
    const std::string at = "[" + std::to_string(i) + "] is ";
    if (tensor->ne[i] < 1)
      throw Error(std::string(name) + ": expected sizes of 1 or more, but ne" + at + std::to_string(tensor->ne[i]));
    if (i >= dims && tensor->ne[i] != 1) {
      throw Error(std::string(name) + ": expected " + std::to_string(dims) + " dimensions, but ne" + at +
                  std::to_string(tensor->ne[i]));
    }
    if (tensor->ne[i] > 1 && tensor->nb[i] % bytes != 0) {
      throw Error(std::string(name) + ": nb" + at + std::to_string(tensor->nb[i]) + ", no multiple of the " +
                  std::to_string(bytes) + " bytes of an element; make it contiguous (ggml_cont)");
    }
  }
}

inline bool is_number(const ggml_tensor *tensor) { return tensor->type == GGML_TYPE_F32 || tensor->type == GGML_TYPE_BF16; }

/* What the nodes have in common: a crew, and how the last computation ended. */
class Node {
 public:
  Node(const Node &) = delete;
  Node &operator=(const Node &) = delete;

  ggml_tensor *out() const { return out_; }

  /* Throws `Error` if the node failed when the graph was computed last. */
  void check() const {
    if (*error_ != '\0') throw Error(error_);
  }

 protected:
  Node() = default;
  ~Node() = default;

  /* op: returns what is wrong, or null. */
  template <class Op>
  void compute(int thread, int threads, Op &&op) {
    crew_.work(thread, threads, [&] {
      *error_ = '\0';
      if (const char *wrong = op()) std::snprintf(error_, sizeof error_, "%s", wrong);
    });
  }

  ggml_tensor *out_ = nullptr;

 private:
  Crew crew_;
  char error_[512] = "";
};

inline const char *wrong(lolrt_status status) { return status == LOLRT_OK ? nullptr : lolrt_last_error(); }

}  // namespace detail

/* Lets lolrt work on the threads that compute a graph, up to `threads` of them, and start none of its own. Once, before graphs
 * are computed. Throws `Error`. */
inline void use_threads(int threads) {
  if (lolrt_set_parallel_for(detail::Crew::run, nullptr) != LOLRT_OK || lolrt_set_threads(threads) != LOLRT_OK) {
    throw Error(lolrt_last_error());
  }
}

/* lolrt_kv_write of K and V as they are: the node's output is `pages`, for `FrameAttention`. */
class KvWrite : public detail::Node {
 public:
  /* k, v: {dim, heads, tokens, frames}. pages: {page_elements, pool_pages}. page_table: {frames}. Throws `Error`. */
  KvWrite(ggml_context *context, ggml_tensor *k, ggml_tensor *v, ggml_tensor *pages, ggml_tensor *page_table) {
    using namespace detail;
    require_same_ggml();
    require(is_number(k) && v->type == k->type && pages->type == k->type,
            "k, v and pages: expected GGML_TYPE_F32 or GGML_TYPE_BF16, all alike");
    require(page_table->type == GGML_TYPE_I32, "page_table: expected GGML_TYPE_I32");
    require(ggml_are_same_shape(k, v), "k and v: expected the same shape");
    require_dims("k", k, 4);
    require_dims("v", v, 4);
    require_dims("pages", pages, 2);
    require_dims("page_table", page_table, 1);
    /* ggml ends the process where a view reaches further than its tensor. */
    require(ggml_nbytes(pages) >= ggml_nelements(pages) * ggml_type_size(pages->type),
            "pages: expected pages that do not overlap");
    ggml_tensor *args[] = {k, v, page_table};
    const auto run = [](ggml_tensor *out, int thread, int threads, void *self) {
      static_cast<KvWrite *>(self)->run(out, thread, threads);
    };
    out_ = ggml_custom_inplace(context, pages, args, 3, run, GGML_N_TASKS_MAX, this);
  }

 private:
  void run(ggml_tensor *out, int thread, int threads) {
    compute(thread, threads, [&] {
      using detail::View;
      const ggml_tensor *k = out->src[1], *v = out->src[2], *table = out->src[3];
      const View k_view(k, {k->ne[3], k->ne[2], k->ne[1], k->ne[0]}), v_view(v, {v->ne[3], v->ne[2], v->ne[1], v->ne[0]});
      const View pages(out, {out->ne[1], out->ne[0]}), page_table(table, {table->ne[0]});
      lolrt_kv_write_desc desc{};
      desc.struct_size = sizeof desc;
      desc.k = k_view.get();
      desc.v = v_view.get();
      desc.pages = pages.get();
      desc.page_table = page_table.get();
      return detail::wrong(lolrt_kv_write(&desc));
    });
  }
};

/* lolrt_frame_attention: the node's output has the shape and type of q. */
class FrameAttention : public detail::Node {
 public:
  /* q: {dim, heads, tokens, frames}. pages: {page_elements, pool_pages}; that of `KvWrite`, where the graph writes some of them.
   * page_table: {pages}. page_tokens: of a page. rotation: {2, pairs, heads, pages * frames}, contiguous, the frames of a page
   * one after another; or null. bias: {heads, pages}; or null. Throws `Error`. */
  FrameAttention(ggml_context *context, ggml_tensor *q, ggml_tensor *pages, ggml_tensor *page_table, int64_t page_tokens,
                 ggml_tensor *rotation = nullptr, ggml_tensor *bias = nullptr)
      : page_tokens_(page_tokens), has_rotation_(rotation != nullptr), has_bias_(bias != nullptr) {
    using namespace detail;
    require_same_ggml();
    require(is_number(q) && pages->type == q->type, "q and pages: expected GGML_TYPE_F32 or GGML_TYPE_BF16, both alike");
    require(page_table->type == GGML_TYPE_I32, "page_table: expected GGML_TYPE_I32");
    require_dims("q", q, 4);
    require_dims("pages", pages, 2);
    require_dims("page_table", page_table, 1);
    std::vector<ggml_tensor *> args{q, pages, page_table};
    for (ggml_tensor *table : {rotation, bias}) {
      if (table == nullptr) continue;
      require(table->type == GGML_TYPE_F32, "rotation and bias: expected GGML_TYPE_F32");
      args.push_back(table);
    }
    require(!rotation || (ggml_is_contiguous(rotation) && rotation->ne[3] == page_table->ne[0] * q->ne[3]),
            "rotation: expected {2, pairs, heads, pages * frames}, contiguous");
    if (rotation) require_dims("rotation", rotation, 4);
    if (bias) require_dims("bias", bias, 2);
    const auto run = [](ggml_tensor *out, int thread, int threads, void *self) {
      static_cast<FrameAttention *>(self)->run(out, thread, threads);
    };
    out_ = ggml_custom_4d(context, q->type, q->ne[0], q->ne[1], q->ne[2], q->ne[3], args.data(), static_cast<int>(args.size()),
                          run, GGML_N_TASKS_MAX, this);
  }

 private:
  void run(ggml_tensor *out, int thread, int threads) {
    compute(thread, threads, [&] {
      const char *wrong = attend(out);
      if (wrong != nullptr) std::memset(out->data, 0xff, ggml_nbytes(out));  // NaN, in either type
      return wrong;
    });
  }

  const char *attend(ggml_tensor *out) {
    using detail::View;
    const ggml_tensor *q = out->src[0], *pages = out->src[1], *table = out->src[2];
    const ggml_tensor *turns = has_rotation_ ? out->src[3] : table, *gates = has_bias_ ? out->src[has_rotation_ ? 4 : 3] : table;
    const View q_view(q, {q->ne[3], q->ne[2], q->ne[1], q->ne[0]}),
        out_view(out, {out->ne[3], out->ne[2], out->ne[1], out->ne[0]});
    const View pages_view(pages, {pages->ne[1], pages->ne[0]}), page_table(table, {table->ne[0]});
    const View rotation(turns, {table->ne[0], q->ne[3], turns->ne[2], turns->ne[1], turns->ne[0]}),
        bias(gates, {gates->ne[1], gates->ne[0]});
    lolrt_frame_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.q = q_view.get();
    desc.pages = pages_view.get();
    desc.page_table = page_table.get();
    desc.page_tokens = page_tokens_;
    desc.rotation = has_rotation_ ? rotation.get() : nullptr;
    desc.bias = has_bias_ ? bias.get() : nullptr;
    desc.out = out_view.get();
    if (const char *wrong = detail::wrong(lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes))) return wrong;
    if (desc.workspace_bytes > workspace_bytes_) {
      workspace_.reset(static_cast<std::byte *>(::operator new(desc.workspace_bytes, std::align_val_t(64), std::nothrow)));
      workspace_bytes_ = workspace_ ? desc.workspace_bytes : 0;
      if (!workspace_) return "FrameAttention: there is no memory for its workspace";
    }
    desc.workspace = workspace_.get();
    return detail::wrong(lolrt_frame_attention(&desc));
  }

  struct Freed {
    void operator()(std::byte *memory) const { ::operator delete(memory, std::align_val_t(64)); }
  };

  int64_t page_tokens_;
  bool has_rotation_, has_bias_;
  std::unique_ptr<std::byte, Freed> workspace_;
  uint64_t workspace_bytes_ = 0;
};

}  // namespace lolrt::ggml

#endif /* LOLRT_GGML_HPP */
