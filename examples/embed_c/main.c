/* lolrt in a program of another language: a window of pages, one chunk of queries, and the op between them.
 *
 * Three frames are written to pages of a pool, the attention of the newest frame's queries to all of them is computed, and the
 * result is compared with the formula in double precision. Prints one line; returns 0 if the two agree. */
#include <lolrt/lolrt.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FRAMES = 3, TOKENS = 10, HEADS = 2, DIM = 16, PAIRS = 3, POOL_PAGES = 5 };

static void require(lolrt_status status) {
  if (status != LOLRT_OK) {
    fprintf(stderr, "lolrt: %s\n", lolrt_last_error());
    exit(1);
  }
}

static lolrt_tensor view(void *data, uint8_t code, uint8_t bits, int32_t ndim, int64_t *shape) {
  lolrt_tensor tensor = {0};
  tensor.data = data;
  tensor.device.type = LOLRT_DEVICE_CPU;
  tensor.ndim = ndim;
  tensor.dtype.code = code;
  tensor.dtype.bits = bits;
  tensor.dtype.lanes = 1;
  tensor.shape = shape;
  return tensor;
}

static float k[FRAMES][TOKENS][HEADS][DIM], v[FRAMES][TOKENS][HEADS][DIM];
static float q[1][TOKENS][HEADS][DIM], out[1][TOKENS][HEADS][DIM];
static float rotation[FRAMES][1][HEADS][PAIRS][2];

/* The op's formula for one query and head; writes DIM channels. */
static void expected_output(int token, int head, double *result) {
  double sum = 0.0;
  for (int c = 0; c < DIM; ++c) result[c] = 0.0;
  for (int frame = 0; frame < FRAMES; ++frame) {
    double turned[DIM];
    for (int c = 0; c < DIM; ++c) turned[c] = q[0][token][head][c];
    for (int i = 0; i < PAIRS; ++i) {
      const double cosine = rotation[frame][0][head][i][0], sine = rotation[frame][0][head][i][1];
      const double even = turned[2 * i], odd = turned[2 * i + 1];
      turned[2 * i] = even * cosine - odd * sine;
      turned[2 * i + 1] = even * sine + odd * cosine;
    }
    for (int key = 0; key < TOKENS; ++key) {
      double score = 0.0;
      for (int c = 0; c < DIM; ++c) score += turned[c] * k[frame][key][head][c];
      const double weight = exp(score / sqrt(DIM));
      sum += weight;
      for (int c = 0; c < DIM; ++c) result[c] += weight * v[frame][key][head][c];
    }
  }
  for (int c = 0; c < DIM; ++c) result[c] /= sum;
}

int main(void) {
  if (lolrt_abi_version() != LOLRT_ABI_VERSION) {
    fprintf(stderr, "built for ABI %d of lolrt, and liblolrt %s has ABI %d: build this program anew\n", LOLRT_ABI_VERSION,
            lolrt_version(), (int)lolrt_abi_version());
    return 1;
  }

  /* The window says which page each frame goes to, and later which pages to attend to. */
  lolrt_pool *pool = NULL;
  lolrt_window *window = NULL;
  int32_t page_table[FRAMES];
  int64_t frames[FRAMES];
  require(lolrt_pool_create(POOL_PAGES, &pool));
  require(lolrt_window_create(pool, 1, 2, &window));
  require(lolrt_window_advance(window, 1000, FRAMES));
  require(lolrt_window_read(window, page_table, frames, FRAMES));

  /* Rotations by the offset from each page to the newest frame, with frequencies of their own for each head. */
  double radians_per_frame[HEADS * PAIRS];
  uint64_t turns_per_frame[HEADS * PAIRS];
  int64_t offsets[FRAMES];
  for (int i = 0; i < HEADS * PAIRS; ++i) radians_per_frame[i] = 1.0 / (1 + i);
  for (int i = 0; i < FRAMES; ++i) offsets[i] = frames[FRAMES - 1] - frames[i];
  require(lolrt_phase_increments(radians_per_frame, turns_per_frame, HEADS * PAIRS));
  int64_t turns_shape[] = {HEADS, PAIRS}, offsets_shape[] = {FRAMES, 1}, rotation_shape[] = {FRAMES, 1, HEADS, PAIRS, 2};
  lolrt_tensor turns_view = view(turns_per_frame, LOLRT_CODE_UINT, 64, 2, turns_shape);
  lolrt_tensor offsets_view = view(offsets, LOLRT_CODE_INT, 64, 2, offsets_shape);
  lolrt_tensor rotation_view = view(rotation, LOLRT_CODE_FLOAT, 32, 5, rotation_shape);
  require(lolrt_rotation_table(&turns_view, &offsets_view, &rotation_view));

  /* K and V of all frames into their pages. */
  int64_t tokens_shape[] = {FRAMES, TOKENS, HEADS, DIM}, pages_shape[] = {POOL_PAGES, 0}, table_shape[] = {FRAMES};
  lolrt_tensor k_view = view(k, LOLRT_CODE_FLOAT, 32, 4, tokens_shape);
  lolrt_tensor v_view = view(v, LOLRT_CODE_FLOAT, 32, 4, tokens_shape);
  require(lolrt_normal(1, 0, 0, &k_view));
  require(lolrt_normal(1, 0, 1, &v_view));
  require(lolrt_page_elements(LOLRT_DEVICE_CPU, k_view.dtype, TOKENS, HEADS, DIM, &pages_shape[1]));
  float *pages = malloc(sizeof(float) * POOL_PAGES * (size_t)pages_shape[1]);
  lolrt_tensor pages_view = view(pages, LOLRT_CODE_FLOAT, 32, 2, pages_shape);
  lolrt_tensor table_view = view(page_table, LOLRT_CODE_INT, 32, 1, table_shape);
  lolrt_kv_write_desc write = {0};
  write.struct_size = sizeof write;
  write.k = &k_view;
  write.v = &v_view;
  write.pages = &pages_view;
  write.page_table = &table_view;
  require(lolrt_kv_write(&write));

  /* Queries of the newest frame against the window. */
  int64_t q_shape[] = {1, TOKENS, HEADS, DIM};
  lolrt_tensor q_view = view(q, LOLRT_CODE_FLOAT, 32, 4, q_shape);
  lolrt_tensor out_view = view(out, LOLRT_CODE_FLOAT, 32, 4, q_shape);
  require(lolrt_normal(1, 0, 2, &q_view));
  lolrt_frame_attention_desc attention = {0};
  attention.struct_size = sizeof attention;
  attention.q = &q_view;
  attention.pages = &pages_view;
  attention.page_table = &table_view;
  attention.page_tokens = TOKENS;
  attention.rotation = &rotation_view;
  attention.out = &out_view;
  require(lolrt_frame_attention_workspace(&attention, &attention.workspace_bytes));
  char *buffer = malloc(attention.workspace_bytes + 63);
  attention.workspace = buffer + (64 - (uintptr_t)buffer % 64) % 64;
  require(lolrt_frame_attention(&attention));

  double error = 0.0;
  for (int token = 0; token < TOKENS; ++token) {
    for (int head = 0; head < HEADS; ++head) {
      double expected[DIM];
      expected_output(token, head, expected);
      for (int c = 0; c < DIM; ++c) error = fmax(error, fabs(out[0][token][head][c] - expected[c]));
    }
  }
  printf("lolrt %s (%s): largest difference to double precision %.1e\n", lolrt_version(), lolrt_isa(), error);

  free(buffer);
  free(pages);
  lolrt_window_destroy(window);
  lolrt_pool_destroy(pool);
  return error < 2e-6 ? 0 : 1;
}
