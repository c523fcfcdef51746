#include "core/checks.h"

#include "core/status.h"

#include <cinttypes>
#include <cstdio>

namespace lolrt {

HeadRows head_rows(const View &view) { return {view.data<void>(), view.stride(0), view.stride(1), view.stride(2)}; }

Pixels pixels(const View &view) { return {view.data<void>(), view.stride(0), view.stride(1), view.stride(2)}; }

void check_page_sizes(const char *operation, int64_t tokens, int64_t heads, int64_t dim) {
  if (dim < 2 || dim > PageLayout::max_dim || dim % 2 != 0) {
    fail(LOLRT_UNSUPPORTED, "%s: dim is %" PRId64 "; the kernels take even dims from 2 to %" PRId64, operation, dim,
         PageLayout::max_dim);
  }
  if (tokens < 1 || tokens > PageLayout::max_tokens || heads < 1 || heads > PageLayout::max_heads) {
    fail(LOLRT_INVALID_ARGUMENT,
         "%s: pages of %" PRId64 " tokens and %" PRId64 " heads; expected 1 to %" PRId64 " and 1 to %" PRId64, operation, tokens,
         heads, PageLayout::max_tokens, PageLayout::max_heads);
  }
}

DType check_page_type(const char *operation, const lolrt_tensor *pages, DType dtype, int64_t dim) {
  if (pages == nullptr) return dtype;
  const bool fp8 = pages->dtype.code == LOLRT_CODE_FLOAT8_E4M3FN;
  if (!fp8 && !(pages->dtype.code == LOLRT_CODE_INT && pages->dtype.bits == 8))
    return dtype;  // a wrong type fails with the shape
  char what[128];
  std::snprintf(what, sizeof what, "%s: pages", operation);
  const DType type = page_type(what, pages->device.type, pages->dtype);
  if (fp8 && (dtype != DType::bfloat16 || dim != 128)) {
    fail(LOLRT_UNSUPPORTED, "%s: pages of float8_e4m3fn go with bfloat16 and dim 128, not %s and dim %" PRId64, operation,
         dtype == DType::float16   ? "float16"
         : dtype == DType::float32 ? "float32"
                                   : "bfloat16",
         dim);
  }
  return type;
}

View check_pages(const Checker &check, const char *operation, const lolrt_tensor *pages, DType page_dtype,
                 const PageLayout &layout, Access access) {
  const auto shape = {Dim{"pool_pages"}, Dim{"page_elements", layout.elements}};
  const View view = access == Access::write ? check.output("pages", pages, page_dtype, shape, Layout::strided)
                                            : check("pages", pages, page_dtype, shape, Layout::strided);
  // Pairs of bfloat16 are read as one 32-bit word.
  if (reinterpret_cast<uintptr_t>(view.data<void>()) % 4 != 0 || view.stride(0) % (4 / element_bytes(page_dtype)) != 0) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: pages: its rows are not 4-byte aligned (64 bytes is best)", operation);
  }
  return view;
}

void check_page_table(const char *operation, const int32_t *page_table, int64_t entries, int64_t pool_pages) {
  for (int64_t i = 0; i < entries; ++i) {
    if (page_table[i] < 0 || page_table[i] >= pool_pages) {
      fail(LOLRT_INVALID_ARGUMENT, "%s: page_table[%" PRId64 "] is %d; the pool has pages 0 to %" PRId64, operation, i,
           page_table[i], pool_pages - 1);
    }
  }
}

}  // namespace lolrt
