/* lolrt: attention over windows of latent-frame pages, with per-head rotary phases.
 *
 * This header is the whole interface of liblolrt for other runtimes. C99, no other header than <stdint.h>.
 *
 * Terms. A *frame* is one latent video frame of `tokens` tokens. A *page* holds K and V of one frame, all heads, packed for the
 * kernels. A *window* is the short list of pages that a chunk of frames attends to: the sink frames and the most recent frames.
 * K is stored with its spatial rotation and without its temporal one; the kernels rotate Q by the offset between query frame and
 * page instead, with frequencies that may differ from head to head.
 *
 * Rules. Every call returns a status; on failure `lolrt_last_error()` says what was wrong, what was expected and what to do, and
 * nothing has been written. Views are borrowed for the call. Kernels do not allocate, print, abort or keep pointers. Calls from
 * several threads are safe as long as they do not share outputs, workspaces, pools or windows.
 *
 * Devices. The tensors of a call are all on the CPU or all on one CUDA device, which must be the current one, or the call fails;
 * those that an op takes as pointers, a workspace too, are there as well. A call on CUDA queues its work on the descriptor's
 * `stream` and returns; what its tensors hold is not looked at by the host, so entries of a page_table are the caller's
 * responsibility. What the CUDA runtime says is wrong is the call's failure, and no longer the runtime's last error; what of the
 * call's work is queued by then stays so.
 *
 * CUDA graphs. Calls may be captured: they launch kernels on `stream` and do nothing else there. What is launched follows from
 * the descriptor alone, that is from sizes, strides, numbers and pointers. What changes from chunk to chunk is behind the
 * pointers: which pages are in the window and where the chunk's K and V go (the page_tables of frame_attention and kv_write; the
 * latter can be the end of the former), the positions (rotation), gates (bias). So once the window is full and its number of
 * pages stays, or from the start with a page_table as long as a full window in which -1 stands for what is not there yet, one
 * captured pass serves every later chunk: before each replay, copy the new page table, rotation and bias to
 * where the captured ones were, with cudaMemcpyAsync on the stream of the replay, from pinned memory that is left alone until the
 * copy is done. lolrt_window_read gives the pages, lolrt_rotation_table the rotation, in host memory. Tensors and workspaces of
 * captured calls must stay where they were for as long as the graph is replayed.
 */
#ifndef LOLRT_LOLRT_H
#define LOLRT_LOLRT_H

#include <stdint.h>

#if defined(_WIN32)
#  define LOLRT_API
#else
#  define LOLRT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a descriptor or a function changes in a way that old callers would notice. */
#define LOLRT_ABI_VERSION 2

typedef enum lolrt_status {
  LOLRT_OK = 0,
  LOLRT_INVALID_ARGUMENT = 1,
  LOLRT_UNSUPPORTED = 2,
  LOLRT_OUT_OF_MEMORY = 3,
  LOLRT_INTERNAL = 4
} lolrt_status;

LOLRT_API int32_t lolrt_abi_version(void);
LOLRT_API const char *lolrt_version(void);
/* Text of the calling thread's last failure; valid until its next failing call. Never NULL. */
LOLRT_API const char *lolrt_last_error(void);

/* ---- tensor views --------------------------------------------------------------------------------------------------------
 * Field by field the layout of DLPack's DLTensor, so that a DLTensor pointer can be passed as it is. */

enum { LOLRT_DEVICE_CPU = 1, LOLRT_DEVICE_CUDA = 2 };
enum { LOLRT_CODE_INT = 0, LOLRT_CODE_UINT = 1, LOLRT_CODE_FLOAT = 2, LOLRT_CODE_BFLOAT = 4, LOLRT_CODE_FLOAT8_E4M3FN = 10 };

typedef struct lolrt_device {
  int32_t type;
  int32_t id;
} lolrt_device;

typedef struct lolrt_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} lolrt_dtype;

typedef struct lolrt_tensor {
  void *data;
  lolrt_device device;
  int32_t ndim;
  lolrt_dtype dtype;
  int64_t *shape;
  int64_t *strides; /* in elements; NULL means contiguous, row major */
  uint64_t byte_offset;
} lolrt_tensor;

/* ---- phases --------------------------------------------------------------------------------------------------------------
 * A phase is an integer number of 2^-64 turns, so that it is exact modulo one turn at any frame number. */

/* turns_per_frame[i] = round(radians_per_frame[i] / 2 pi * 2^64) mod 2^64, exactly; |radians_per_frame[i]| <= 2^32. */
LOLRT_API lolrt_status lolrt_phase_increments(const double *radians_per_frame, uint64_t *turns_per_frame, int64_t count);

/* out[page, frame, head, pair] = (cos, sin)(offsets_frames[page, frame] * turns_per_frame[head, pair]).
 *   turns_per_frame  uint64 [heads, pairs]
 *   offsets_frames   int64  [pages, frames], query frame minus page frame; any sign
 *   out              float32 [pages, frames, heads, pairs, 2] */
LOLRT_API lolrt_status lolrt_rotation_table(const lolrt_tensor *turns_per_frame, const lolrt_tensor *offsets_frames,
                                            const lolrt_tensor *out);

/* ---- noise ---------------------------------------------------------------------------------------------------------------
 * Standard normal draws that depend on nothing but their key: Philox4x32-10 and Box-Muller. The same (seed, frame, step) gives
 * the same values wherever and in whichever order it is asked for. out: float32, contiguous, of any shape of 1 to 6
 * dimensions, 2^34 elements at most. */
LOLRT_API lolrt_status lolrt_normal(uint64_t seed, int64_t frame, int32_t step, const lolrt_tensor *out);

/* ---- pages and windows ---------------------------------------------------------------------------------------------------
 * Bookkeeping only: which page of a caller's pool holds which frame. */

typedef struct lolrt_pool lolrt_pool;
typedef struct lolrt_window lolrt_window;

LOLRT_API lolrt_status lolrt_pool_create(int64_t pages, lolrt_pool **pool);
LOLRT_API void lolrt_pool_destroy(lolrt_pool *pool);
/* Takes a free page (the lowest), or fails with LOLRT_OUT_OF_MEMORY when none is left. */
LOLRT_API lolrt_status lolrt_pool_acquire(lolrt_pool *pool, int32_t *page);
/* A taken page has one holder more, so that it outlasts the window that took it, say; it is free when all have released it. */
LOLRT_API lolrt_status lolrt_pool_retain(lolrt_pool *pool, int32_t page);
LOLRT_API lolrt_status lolrt_pool_release(lolrt_pool *pool, int32_t page);
LOLRT_API int64_t lolrt_pool_free_pages(const lolrt_pool *pool);

/* The first `sink_frames` frames stay for ever; of the later ones the `recent_frames` newest stay, the chunk in hand included.
 * The pool must outlive the window; the window gives its pages back when it is destroyed. */
LOLRT_API lolrt_status lolrt_window_create(lolrt_pool *pool, int64_t sink_frames, int64_t recent_frames, lolrt_window **window);
LOLRT_API void lolrt_window_destroy(lolrt_window *window);
/* Makes room for the next chunk [first_frame, first_frame + frames) and gives each of its frames a page. Frames follow one
 * another without a gap; the first call says where the stream starts. Calling again with the newest chunk changes nothing.
 * Fails, with the window unchanged, when the frames do not follow or do not fit. */
LOLRT_API lolrt_status lolrt_window_advance(lolrt_window *window, int64_t first_frame, int64_t frames);
/* Number of pages in the window now; at most sink_frames + recent_frames. */
LOLRT_API int64_t lolrt_window_size(const lolrt_window *window);
/* Pages and their frames, oldest first (sinks, then recent frames, the newest chunk last); `size` entries each. */
LOLRT_API lolrt_status lolrt_window_read(const lolrt_window *window, int32_t *pages, int64_t *frames, int64_t size);
/* Puts a saved list of frames (as lolrt_window_read gave them) into an empty window, taking a page from the pool for each. */
LOLRT_API lolrt_status lolrt_window_restore(lolrt_window *window, const int64_t *frames, int64_t size);

/* Elements of one page (K part, then V part, padding included) for pages of `dtype` on a device of type `device_type`:
 *   CPU   K  bfloat16 [heads][ceil(tokens/16)][dim/2][16][2]         float32 [heads][ceil(tokens/16)][dim][16]
 *         V  bfloat16 [heads][ceil(dim/16)][ceil(tokens/2)][16][2]   float32 [heads][ceil(dim/16)][tokens][16]
 *         K  int8 [heads][ceil(tokens/16)][ceil(dim/4)][16][4]
 *         V  int8 [heads][ceil(dim/16)][ceil(tokens/4)][16][4]
 *            and then float32 [heads][3][dim], the scales and the middles of a head's K, and the scales of its V
 *   CUDA  K and V  bfloat16 or float16 [heads][tokens][dim], rows as they come
 *         K and V  float8_e4m3fn [heads][tokens][128], then float32 [heads][2], the scales of a head's K and V
 * each part rounded up to 64 bytes. What padding holds never reaches an output. Tokens are 1 to 2^24, heads 1 to 4096;
 * dim is as for the ops.
 *
 * Pages of int8, on the CPU, take the place of bfloat16 or float32 ones in a half or a quarter of the memory. In them
 *   K = middle + scale * (code - 128)   the code an unsigned byte
 *   V = scale * code                    the code a signed byte
 * each channel of a head with a scale and a middle of its own: the middle of its least and its largest K in the page, and the
 * scale with which no code passes 127 (from 128), but at least 2^-100. Codes are rounded to nearest, ties to even. Of a channel
 * that has a number that is not finite, scale and middle are NaN, and with them what attends to it. Values up to 2^100 do not
 * overflow.
 *
 * Pages of float8_e4m3fn, on CUDA, take the place of bfloat16 ones in half the memory. An element is x / scale, rounded to
 * nearest, ties to even. A scale is a power of two, from 2^-100 to 2^7: the least with which no element of the head in this page
 * passes 448, so that a scale costs no accuracy. It is NaN, and with it all that attends to the head's page, where one is not
 * finite or passes 448 * 2^7. Elements of the 16 channels from 16 i on lie in this order:
 *   K  0 1 8 9  2 3 10 11  4 5 12 13  6 7 14 15
 *   V  0 8  1 9  2 10  3 11  4 12  5 13  6 14  7 15 */
LOLRT_API lolrt_status lolrt_page_elements(int32_t device_type, lolrt_dtype dtype, int64_t tokens, int64_t heads, int64_t dim,
                                           int64_t *elements);

/* ---- ops -----------------------------------------------------------------------------------------------------------------
 * float32 or bfloat16 on the CPU, bfloat16 or float16 on CUDA, the same for all tensors marked T; inside, everything is float32.
 * `dim` is even, 2..256; on CUDA it is 64 or 128, and only 128 for float16. The innermost dimension of every tensor is
 * contiguous; outer ones may be strided where it says so, and on CUDA rows of heads and pages are 16-byte aligned. Every size is
 * at least 1; tokens of a frame or a page are at most 2^24, heads at most 4096. No two elements of an output share memory, and a
 * page_table shares none with what is written.
 * Pages are T, or on the CPU int8, or on CUDA, where T is bfloat16 and dim 128, float8_e4m3fn: their tensor's type decides.
 *
 * A rotation turns channel pairs (x0, x1) = (2i, 2i + 1) by (cos, sin), in float32, rounded to T once:
 *   y0 = fma(x0, cos, -(x1 * sin)),  y1 = fma(x1, cos, x0 * sin)
 * The fused product is part of the definition, so that all devices round alike; (1, 0) is the identity. */

/* Projections to queries and pages: RMSNorm over all heads of a token, weight, rotation by the token's place in its frame.
 *   x' = round_T(round_T(x * rsqrt(mean(x^2) + eps)) * weight), then the pairs from `rotation_first_channel` on are rotated.
 * Channels that are not rotated are stored as they are. Either half may be left out: q = q_out = NULL, or k = v = NULL. */
typedef struct lolrt_kv_write_desc {
  uint32_t struct_size;           /* sizeof(lolrt_kv_write_desc) */
  float eps;                      /* of the RMSNorm */
  const lolrt_tensor *q;          /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *k;          /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *v;          /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *q_weight;   /* T [heads, dim], or NULL: q is not normalised */
  const lolrt_tensor *k_weight;   /* T [heads, dim], or NULL: k is not normalised */
  const lolrt_tensor *rotation;   /* float32 [tokens, pairs, 2] of (cos, sin), or NULL: nothing is rotated */
  int64_t rotation_first_channel; /* even */
  const lolrt_tensor *q_out;      /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *pages;      /* T, int8 or float8_e4m3fn [pool_pages, page_elements], rows strided; best 64-byte aligned */
  const lolrt_tensor *page_table; /* int32 [frames]: the page that each frame's K and V go to, all different */
  void *stream;                   /* cudaStream_t of a call on CUDA; NULL is the default stream */
} lolrt_kv_write_desc;

LOLRT_API lolrt_status lolrt_kv_write(const lolrt_kv_write_desc *desc);

/* Softmax attention of every query to every token of the listed pages, no mask.
 *   score(q, k) = scale * <R(rotation[page, frame, head]) q, k> + bias[page, head]
 * where R rotates q's first 2 * pairs channels. A head whose pages are all left out gives 0.
 *
 * One call may serve several sessions whose pages are in one pool: with a page_table of two dimensions, q's frames are `batch`
 * groups of equal size, in order, and those of group b attend to the pages that row b lists, and to no others. Then
 *   score(q, k) = scale * <R(rotation[b, page, frame, head]) q, k> + bias[b, page, head]
 * `frame` being counted in the group. Each group's result is, bit for bit, what it gives in a call of its own. Groups of
 * different sizes: a row for every frame, batch = frames, which costs nothing on the CPU and little on CUDA (docs/gpu.md).
 *
 * An entry of -1 in the page_table, of either form, is a page that is not there: nothing of it is read, neither its rotation nor
 * its bias, and its mass is 0. So rows may list different numbers of pages. A frame without any page gives 0. On CUDA, where the
 * page_table is not read by the host, entries are not checked, and roundings follow from the length of a row, not from how many
 * of its pages are there: a shorter row with the same pages may differ by a rounding.
 *
 * With pages of int8 the products are of integers. A query, rotated for a page and multiplied by the scales of its keys, is
 * rounded to signed bytes with a scale of its own. Weights are rounded to unsigned bytes, 255 for the largest among 512 keys of a
 * page, up or down by a fixed pattern, so that in the mean small ones count for what they are. */
typedef struct lolrt_frame_attention_desc {
  uint32_t struct_size;      /* sizeof(lolrt_frame_attention_desc) */
  float scale;               /* positive; 0 means 1 / sqrt(dim) */
  const lolrt_tensor *q;     /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *pages; /* T, int8 or float8_e4m3fn [pool_pages, page_elements], rows strided; of 16 bits and dim 128, on
                                sm_90 by a multiple of page_tokens * dim elements, as page_elements is */
  const lolrt_tensor *page_table; /* int32 [pages], 1 or more, any order; or [batch, pages], frames being a multiple of batch */
  int64_t page_tokens;            /* tokens of a page; need not equal q's */
  const lolrt_tensor *rotation;   /* float32 [pages, frames, heads, pairs, 2], or NULL; with a batch
                                     [batch, pages, frames / batch, heads, pairs, 2] */
  const lolrt_tensor *bias;       /* float32 [pages, heads], -inf leaves a page out for a head, others count as no further from
                                     0 than 2^24; or NULL; with a batch [batch, pages, heads] */
  const lolrt_tensor *out;        /* T [frames, tokens, heads, dim], strided */
  const lolrt_tensor *mass;       /* float32 [pages, frames, heads]: softmax weight spent on a page, mean over the frame's
                                     queries; or NULL; with a batch [batch, pages, frames / batch, heads] */
  void *workspace;                /* 64-byte aligned; may be NULL where no bytes are needed */
  uint64_t workspace_bytes;       /* at least what lolrt_frame_attention_workspace says for this descriptor */
  void *stream;                   /* as in lolrt_kv_write_desc */
} lolrt_frame_attention_desc;

LOLRT_API lolrt_status lolrt_frame_attention_workspace(const lolrt_frame_attention_desc *desc, uint64_t *bytes);
LOLRT_API lolrt_status lolrt_frame_attention(const lolrt_frame_attention_desc *desc);

/* Gated residual and LayerNorm in one pass: x = round_T(x + gate * residual) if a residual is given, out = round_T(LayerNorm(x) *
 * scale + shift). `out` may be x. */
typedef struct lolrt_modulated_norm_desc {
  uint32_t struct_size; /* sizeof(lolrt_modulated_norm_desc) */
  float eps;
  const lolrt_tensor *x;        /* T [frames, tokens, channels], strided; updated in place when a residual is given */
  const lolrt_tensor *residual; /* T [frames, tokens, channels], strided, or NULL */
  const lolrt_tensor *gate;     /* float32 [1 or frames, channels], or NULL: 1 */
  const lolrt_tensor *scale;    /* float32 [1 or frames, channels] */
  const lolrt_tensor *shift;    /* float32 [1 or frames, channels] */
  const lolrt_tensor *out;      /* T [frames, tokens, channels], strided */
  void *stream;                 /* as in lolrt_kv_write_desc */
} lolrt_modulated_norm_desc;

LOLRT_API lolrt_status lolrt_modulated_norm(const lolrt_modulated_norm_desc *desc);

/* GELU by its tanh form, in place: x = round_T(x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))). */
typedef struct lolrt_gelu_desc {
  uint32_t struct_size;  /* sizeof(lolrt_gelu_desc) */
  const lolrt_tensor *x; /* T [frames, tokens, channels], strided */
  void *stream;          /* as in lolrt_kv_write_desc */
} lolrt_gelu_desc;

LOLRT_API lolrt_status lolrt_gelu(const lolrt_gelu_desc *desc);

/* Rows of a linear layer's input in 8 bits, with a scale for each row, as products of integers want them. On the CPU only.
 *   scale = max(max|x| / 127, 2^-100),  q = 128 + round(x / scale), which is in 1 .. 255
 * x / scale is the product of x and the rounded 1 / scale, ties to even. Of a row with a number that is not finite the scale is
 * NaN, and with it all that is computed with it; its q is 128. */
typedef struct lolrt_quantize_rows_desc {
  uint32_t struct_size;      /* sizeof(lolrt_quantize_rows_desc) */
  const lolrt_tensor *x;     /* T [frames, tokens, channels], strided */
  const lolrt_tensor *q;     /* uint8 [frames, tokens, channels], strided */
  const lolrt_tensor *scale; /* float32 [frames, tokens] */
} lolrt_quantize_rows_desc;

LOLRT_API lolrt_status lolrt_quantize_rows(const lolrt_quantize_rows_desc *desc);

/* What follows such a product: out = round_T(x * scale + bias), with the scale of the row. On the CPU only. */
typedef struct lolrt_dequantize_rows_desc {
  uint32_t struct_size;      /* sizeof(lolrt_dequantize_rows_desc) */
  const lolrt_tensor *x;     /* float32 [frames, tokens, channels], strided */
  const lolrt_tensor *scale; /* float32 [frames, tokens] */
  const lolrt_tensor *bias;  /* float32 [channels] */
  const lolrt_tensor *out;   /* T [frames, tokens, channels], strided; may be x where T is float32 */
} lolrt_dequantize_rows_desc;

LOLRT_API lolrt_status lolrt_dequantize_rows(const lolrt_dequantize_rows_desc *desc);

/* One step of a flow-matching sampler: to the clean sample that the model predicts and, with noise, on to the next noise level.
 *   clean = round_float32(sample - level * velocity), in float64
 *   out = noise ? (1 - after) * clean + after * noise : clean, in float32, 1 - after and after rounded to it
 * All tensors are float32, also on CUDA. Source: Self-Forcing, pipeline/causal_inference.py. */
typedef struct lolrt_sampler_step_desc {
  uint32_t struct_size;         /* sizeof(lolrt_sampler_step_desc) */
  double level;                 /* how far to follow the flow back; the noise level of `sample`, to arrive at the clean one */
  double after;                 /* the noise level of `out`; unused without noise */
  const lolrt_tensor *sample;   /* float32 [elements] */
  const lolrt_tensor *velocity; /* float32 [elements] */
  const lolrt_tensor *noise;    /* float32 [elements], or NULL */
  const lolrt_tensor *out;      /* float32 [elements]; may be sample */
  void *stream;                 /* as in lolrt_kv_write_desc */
} lolrt_sampler_step_desc;

LOLRT_API lolrt_status lolrt_sampler_step(const lolrt_sampler_step_desc *desc);

/* ---- video decoder -------------------------------------------------------------------------------------------------------
 * The two ops that a causal VAE consists of, on images with their channels last. On the CPU only. */

/* RMSNorm over the channels of each pixel, and SiLU: y = x * sqrt(channels) * gamma / max(|x|, 1e-12), |x| the length of the
 * pixel's channels; out = y / (1 + exp(-y)), or y. In float32, rounded once. The result is the middle of `out`; a margin of m
 * pixels on each side, if it has one, is filled with zeros: what a convolution wants to read. Without margin `out` may be x, if
 * their types are the same. */
typedef struct lolrt_channel_norm_desc {
  uint32_t struct_size;      /* sizeof(lolrt_channel_norm_desc) */
  int32_t silu;              /* whether SiLU follows */
  const lolrt_tensor *x;     /* float32 or bfloat16 [frames, rows, columns, channels], strided */
  const lolrt_tensor *gamma; /* float32 [channels] */
  const lolrt_tensor *out;   /* float32 or bfloat16, as x or not, [frames, rows + 2 m, columns + 2 m, channels], strided */
} lolrt_channel_norm_desc;

LOLRT_API lolrt_status lolrt_channel_norm(const lolrt_channel_norm_desc *desc);

/* Convolution that looks backwards in time and pads nothing in space:
 *   out[f, y, x] = bias + residual[f, y, x] + sum over t, i, j of weight[t, i, j] * all[f + t, y + i, x + j]
 * where `all` is `past` followed by `x`. All float32. Frames and rows of x and past may be strided, their columns are adjacent;
 * out and residual may be strided in all but the channels. */
typedef struct lolrt_conv3d_desc {
  uint32_t struct_size;         /* sizeof(lolrt_conv3d_desc) */
  const lolrt_tensor *past;     /* [kernel_frames - 1, rows, columns, in_channels], or NULL: zeros */
  const lolrt_tensor *x;        /* [frames, rows, columns, in_channels] */
  const lolrt_tensor *weight;   /* [ceil(out_channels / 16), kernel_frames, kernel_rows, kernel_columns, in_channels, 16] */
  const lolrt_tensor *bias;     /* [ceil(out_channels / 16), 16] */
  const lolrt_tensor *residual; /* like out, and may be out; or NULL */
  const lolrt_tensor *out;      /* [frames, rows - kernel_rows + 1, columns - kernel_columns + 1, out_channels]; not x or past */
} lolrt_conv3d_desc;

LOLRT_API lolrt_status lolrt_conv3d(const lolrt_conv3d_desc *desc);

/* ---- dispatch and threads ------------------------------------------------------------------------------------------------ */

/* Kernel sets that this build has and this CPU can run, best first, separated by commas: on x86-64 of "amx", "avx512bf16",
 * "avx512", "avx2", on 64-bit ARM of "neonbf16", "neon"; and "scalar". */
LOLRT_API const char *lolrt_isas(void);
/* The set in use: the best one, or the one that the environment variable LOLRT_ISA names ("none", and every op fails with the
 * list, when it names one that cannot run here). */
LOLRT_API const char *lolrt_isa(void);
/* Uses the named set from now on in the whole process; fails with the list when it cannot run here. */
LOLRT_API lolrt_status lolrt_set_isa(const char *name);

/* Threads of the library's own pool, the caller included; results do not depend on it. At first all CPUs of the process: those of
 * its affinity, but no more than the quota of its control groups. A call that comes while another host thread's has the pool runs
 * on its own thread alone. */
LOLRT_API int32_t lolrt_threads(void);
LOLRT_API lolrt_status lolrt_set_threads(int32_t threads);

/* A host with a thread pool of its own passes it here: `run(context, body, arg, tasks)` must call body(arg, i, worker) once for
 * every i in [0, tasks), with `worker` in [0, lolrt_threads()) and never the same worker twice at one time. NULL: own pool.
 * This and the settings above are not to be changed while another thread is inside an op. */
typedef void (*lolrt_task)(void *arg, int64_t task, int32_t worker);
typedef void (*lolrt_parallel_for)(void *context, lolrt_task body, void *arg, int64_t tasks);
LOLRT_API lolrt_status lolrt_set_parallel_for(lolrt_parallel_for run, void *context);

#ifdef __cplusplus
}
#endif

#endif /* LOLRT_LOLRT_H */
