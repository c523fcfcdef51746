// Checks that several operations share.
#pragma once

#include "core/ops.h"

namespace lolrt {

HeadRows head_rows(const View &view);
Pixels pixels(const View &view);

// Fails unless the kernels can use a page of this size: dim even and 2..256, tokens and heads within PageLayout's limits.
void check_page_sizes(const char *operation, int64_t tokens, int64_t heads, int64_t dim);

enum class Access { read, write };

// The element type of the pages: the op's T, or on CUDA float8_e4m3fn if T is bfloat16 and dim 128.
DType check_page_type(const char *operation, const lolrt_tensor *pages, DType dtype, int64_t dim);

// The pool of pages: [pool_pages, page_elements] of their type, rows strided.
View check_pages(const Checker &check, const char *operation, const lolrt_tensor *pages, DType page_dtype,
                 const PageLayout &layout, Access access);

// Fails unless every entry is a page of the pool.
void check_page_table(const char *operation, const int32_t *page_table, int64_t entries, int64_t pool_pages);

}  // namespace lolrt
