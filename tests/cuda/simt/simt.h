// An emulator of what a CUDA block does, for tests: the kernels' own source, compiled by the host's compiler, runs on it.
//
// The threads of a block are fibers that one host thread runs in turns; they change only where they meet. Blocks run one after
// the other. It is as unkind as the rules allow:
//   - shared memory starts as NaNs; what cp.async brings arrives as late as possible, and the target is NaN meanwhile
//   - whoever touches memory is checked (race.h): unordered accesses, copies under way
//   - what lies outside every buffer, or is not aligned to what is moved there, is not even touched
//   - lanes that meet must meet at the same instruction, all of them; who waits for ever is a deadlock; copies that nobody waits
//   for
//     are reported
//   - bulk copies (TMA) arrive when nobody can go on without them, and count for their mbarrier only then
//   - products of warpgroups read their matrices when they are waited for, by the bits of the descriptor; who touches their
//     registers or memory meanwhile is reported, and who has written either without the fence that is due
//   - with a seed other than 0 the order of threads and blocks and the time at which copies arrive are random
// It knows nothing of time, of registers, of the operands' order in PTX, or of how a GPU rounds within one product.
#pragma once

#include "tensor_box.h"

#include <cstdint>

namespace lolrt::simt {

struct Index {
  unsigned x, y, z;
};

struct Settings {
  uint64_t seed = 0;
  int architecture = 800;  // what the code that is loaded was made for, as of __CUDA_ARCH__
  int multiprocessors = 2;
  int device = 0;       // its own architecture; 0: the same
  int last_blocks = 0;  // of a launch as many are run; 0: all
};

// Sums over all launches since they were last set to zero; of shared memory the largest size of any block.
struct Counts {
  uint64_t blocks, products, matrix_loads, bank_conflicts, copies, shared_bytes;
  uint64_t warpgroup_products;  // of a warp's 16 rows
  uint64_t boxes;               // that bulk copies brought
  uint64_t warpgroup_turns;     // products of a warpgroup after those of another one, or first in a block
};

Settings &settings();
Counts &counts();

// Memory that kernels may access besides shared memory and their arguments; all memory if no buffer is named.
void clear_buffers();
void add_buffer(const void *start, uint64_t bytes);

// A launch as its launcher requests it. The kernel is a function of one argument; `enter` calls it with that argument.
struct Launch {
  const void *kernel;
  Index blocks;
  unsigned threads, shared_bytes;
  const void *argument;
  uint64_t argument_bytes;
  void (*enter)(const void *launch);
};

// Runs launches instead of the emulator, and returns an error text, or NULL. There is none unless a test sets one. It is an
// interpreter of what nvcc makes of the same kernels, or it keeps launches to run them later.
using Runner = const char *(*)(const Launch *);
Runner &runner();

// Runs enter(argument) in every thread; returns an error text, or NULL.
const char *run(Index blocks, unsigned threads, unsigned shared_bytes, void (*enter)(const void *), const void *argument,
                uint64_t argument_bytes);
inline const char *run(const Launch &launch) {
  return run(launch.blocks, launch.threads, launch.shared_bytes, launch.enter, &launch, sizeof launch);
}

// ---- for threads ----

unsigned thread_index();
Index block_index();
unsigned char *shared_memory();

// Of a thread that copies a vector of so many bytes.
void check_vectors(const void *to, const void *from, unsigned bytes);

void sync_block();
// Of `threads` threads that name the same barrier, 1 to 15; whole warps.
void sync_named(int barrier, unsigned threads);
void arrive_named(int barrier, unsigned threads);
void sync_warp();
float exchange(float value, int mask);
bool any_lane(bool predicate);

void copy_async(void *shared, const void *global, int bytes, bool valid);
void commit_copy_group();
void wait_for_copies(unsigned pending);

// Bytes from the start of shared memory.
uint32_t shared_address(const void *shared);

// As in csrc/cuda/device/barrier.cuh and bulk_copy.cuh.
void init_barrier(void *barrier, int arrivals);
void publish_barriers();
void arrive(void *barrier, int expected_bytes);
void wait_for_phase(void *barrier, int parity);
void fence_proxy();
// What is wrong with the map of such a box, or NULL.
const char *tensor_problem(const TensorBox &box);
void copy_box(void *shared, const TensorBox &box, void *barrier, const int (&at)[4]);

// As in csrc/cuda/device/warpgroup.cuh. d has columns / 2 elements a thread.
void set_registers(unsigned registers, bool take);
void fence_products();
void begin_product(float *d, int columns, const uint32_t (&a)[4], uint64_t b, bool transposed, bool add,
                   float (*value)(uint16_t));
void commit_product_group();
void wait_for_products(unsigned pending);

// As in csrc/cuda/device/matrix.cuh.
void load_matrices(uint32_t (&words)[4], const void *row, bool transposed);
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*value)(uint16_t));

}  // namespace lolrt::simt
