// The emulator itself: small correct kernels, and the same with a mistake, which the error must name.
#include "matrix_descriptor.cuh"

#include <device/launch.cuh>
#include <device/matrix.cuh>
#include <device/threads.cuh>
#include <device/warpgroup.cuh>

#include <cstdio>
#include <string>
#include <vector>

namespace lolrt::cuda {
namespace {

constexpr unsigned kThreads = 64;

struct Argument {
  int mistake;
  float *data;
};

// This block's part of the buffer.
float *own(const Argument &argument) { return argument.data + blockIdx.x * 256; }

float *shared() { return reinterpret_cast<float *>(shared_memory()); }

// Each thread reads what its neighbour has written. 1: without a barrier.
void neighbour(const Argument argument) {
  const unsigned thread = threadIdx.x;
  shared()[thread] = static_cast<float>(thread);
  if (argument.mistake != 1) sync_block();
  const float value = shared()[(thread + 1) % kThreads];
  own(argument)[thread] = value;
}

// The same within warps. 1: no barrier; 2: one of the block where one lane does not come; 3: lanes meet in two places.
void warps(const Argument argument) {
  const unsigned thread = threadIdx.x;
  if (argument.mistake == 2) {
    if (thread != 5) sync_block();
  } else if (argument.mistake == 3) {
    if (thread % 2 == 0) {
      sync_warp();
    } else {
      own(argument)[0] = exchange(1.0f, 2);
    }
  }
  shared()[thread] = static_cast<float>(thread);
  if (argument.mistake != 1) sync_warp();
  own(argument)[thread] = shared()[thread ^ 1];
}

// Two warps meet at a separate barrier. 1: for a number of threads that never arrives; 2: for different numbers.
void named(const Argument argument) {
  const unsigned thread = threadIdx.x;
  shared()[thread] = static_cast<float>(thread);
  if (argument.mistake == 1 || (argument.mistake == 2 && thread < 32)) {
    sync_named<96>(3);
  } else {
    sync_named<64>(3);
  }
  own(argument)[thread] = shared()[kThreads - 1 - thread];
}

// Two warps take turns to change what both can see, the first warp first. 1: it does not wait for its second turn; 2: the second
// warp does not wait; 3: nobody passes the last turn back; 4: it is passed back and nobody waits for it; 5: passed before the
// change; 6: passed to itself; 7: passed twice.
void turns(const Argument argument) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes, mistake = argument.mistake;
  float &seen = shared()[threadIdx.x % kWarpLanes];
  if (warp == 1) arrive_named<64>(1);
  if (threadIdx.x < kWarpLanes) seen = 0.0f;
  for (int turn = 0; turn < 2; ++turn) {
    if (!(mistake == 1 && warp == 0 && turn == 1) && !(mistake == 2 && warp == 1)) sync_named<64>(1 + warp);
    if (mistake == 5) arrive_named<64>(2 - warp);
    seen += 1.0f;
    if (mistake == 7) arrive_named<64>(2 - warp);
    if (mistake != 5 && !(mistake == 3 && warp == 1 && turn == 1)) arrive_named<64>(mistake == 6 ? 1 + warp : 2 - warp);
  }
  if (warp == 0 && mistake != 4) sync_named<64>(1);
  own(argument)[threadIdx.x] = seen;
}

// Copies from global memory. 1: nobody waits; 2: read before the barrier; 3: read before the copy has arrived; 4: from beyond the
// buffer; 5: to an odd address; 6: the group was not closed.
void copies(const Argument argument) {
  const unsigned thread = threadIdx.x, from = argument.mistake == 4 ? 1024 : 0;
  copy_async(shared_memory() + thread * 16 + (argument.mistake == 5 ? 4 : 0), own(argument) + from + thread * 4);
  if (argument.mistake != 6) commit_copy_group();
  float early = 0.0f;
  if (argument.mistake == 3) early = shared()[thread * 4];
  if (argument.mistake != 1) wait_for_copies<0>();
  if (argument.mistake != 2) sync_block();
  const float value = shared()[(thread * 4 + 4) % (kThreads * 4)];
  sync_block();
  own(argument)[thread * 4] = value + early;
}

// A block's own part of the buffer. 1: all blocks write the same; 2: beyond it; 3: beyond shared memory; 4: where there is no
// memory; 5: a vector at an address that is not its own.
void parts(const Argument argument) {
  float *part = argument.mistake == 1 ? argument.data : own(argument);
  part[argument.mistake == 2 ? threadIdx.x + 1024 : threadIdx.x] = 1.0f;
  if (argument.mistake == 3) shared()[4096 + threadIdx.x] = 1.0f;
  if (argument.mistake == 4) part[threadIdx.x + (uint64_t{1} << 42)] = 1.0f;
  if (argument.mistake == 5) store_vector(part + 1, {0, 0, 0, 0});
}

// The value of each lane's partner, and whether any lane is the last. 1: one lane has left.
void lanes(const Argument argument) {
  const unsigned thread = threadIdx.x;
  if (argument.mistake == 1 && thread == 40) return;
  const float partner = exchange(static_cast<float>(thread), 4);
  own(argument)[thread] = any_lane(thread == 63) ? partner : -partner;
}

// A warpgroup multiplies ones with ones that it has written itself: 112 columns of 16, whose rows of 128 bytes need no
// permutation. 1: no fence between the writes and the product; 2: nobody waits; 3: read before it is over; 4: a register written
// behind the fence; 5: one warp multiplies with something else; 6: the matrix written while it is read.
void product(const Argument argument) {
  const unsigned thread = threadIdx.x;
  auto *words = reinterpret_cast<uint32_t *>(shared_memory());
  for (unsigned i = thread; i < 112 * 32; i += kWarpgroupThreads) words[i] = 0x3f803f80;
  if (argument.mistake != 1) simt::fence_proxy();
  sync_block();
  float d[56];
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  if (argument.mistake != 4) fence_products();
  multiply_rows<Bf16>(d, a, matrix_descriptor(shared_memory() + (argument.mistake == 5 && thread < 32 ? 32 : 0), 0), false);
  commit_product_group();
  if (argument.mistake == 3) own(argument)[thread] = d[7];
  if (argument.mistake == 6) words[thread] = 0;
  if (argument.mistake != 2) wait_for_products<0>();
  own(argument)[thread] = d[7];
}

// One thread announces bytes that another waits for. 1: too many; 2: the wrong phase is waited for; 3: the barrier is not made.
void phases(const Argument argument) {
  const unsigned thread = threadIdx.x;
  auto *barrier = reinterpret_cast<uint64_t *>(shared_memory() + 1024);
  if (thread == 0 && argument.mistake != 3) simt::init_barrier(barrier, 1);
  sync_block();
  if (thread == 0) {
    shared()[0] = 1.0f;
    simt::arrive(barrier, argument.mistake == 1 ? 16 : 0);
  }
  if (thread == 40) {
    simt::wait_for_phase(barrier, argument.mistake == 2 ? 1 : 0);
    own(argument)[0] = shared()[0];
  }
}

struct Case {
  const char *name;
  void (*kernel)(Argument);
  std::vector<const char *> problems;  // of the mistakes from 1 on
};

const Case kCases[] = {
    {"neighbour", neighbour, {"a write and a read after it are not ordered|a read and a write after it are not ordered"}},
    {"warps", warps, {"not ordered", "deadlock", "divergence"}},
    {"named", named, {"deadlock: threads wait for ever: 64 at a barrier", "a barrier of other threads"}},
    {"turns",
     turns,
     {"comes to a barrier again", "not ordered", "deadlock", "nobody waits|not ordered", "not ordered",
      "comes to a barrier again", "comes to a barrier again"}},
    {"copies",
     copies,
     {"copies that nobody waits for|a copy under way", "not ordered", "a copy under way", "outside every buffer", "not aligned",
      "copies that nobody waits for|a copy under way"}},
    {"parts",
     parts,
     {"accesses of two blocks", "outside every buffer", "outside every buffer", "outside every buffer", "not aligned"}},
    {"lanes", lanes, {"deadlock"}},
    {"product",
     product,
     {"without a proxy fence", "registers of a product under way|products that nobody waits for",
      "registers of a product under way", "written without a fence", "warps of a warpgroup multiply different matrices",
      "a product under way"}},
    {"phases", phases, {"deadlock", "not ordered|deadlock", "not initialised"}},
};

bool contains_one(const std::string &text, const char *alternatives) {
  std::string rest = alternatives;
  for (size_t bar; !rest.empty(); rest = bar == std::string::npos ? "" : rest.substr(bar + 1)) {
    bar = rest.find('|');
    if (text.find(rest.substr(0, bar)) != std::string::npos) return true;
  }
  return false;
}

int failures = 0;

void expect(bool good, const char *name, int mistake, uint64_t seed, const std::string &said) {
  if (good) return;
  ++failures;
  std::printf("%s, mistake %d, seed %d: the emulator said: %s\n", name, mistake, static_cast<int>(seed), said.c_str());
}

void run(const Case &test, uint64_t seed) {
  simt::settings().seed = seed;
  for (int mistake = 0; mistake <= static_cast<int>(test.problems.size()); ++mistake) {
    std::vector<float> data(4096, 2.0f);  // of which the kernels may use the first 1024
    simt::clear_buffers();
    simt::add_buffer(data.data(), 1024 * sizeof(float));
    const Grid grid{2, 1, 1, test.kernel == product ? kWarpgroupThreads : kThreads, 16384};
    const std::string said =
        launch(test.name, test.kernel, grid, Target{{LOLRT_DEVICE_CUDA, 0}, nullptr}, Argument{mistake, data.data()}).text;
    expect(mistake == 0 ? said.empty() : contains_one(said, test.problems[mistake - 1]), test.name, mistake, seed, said);
  }
}

}  // namespace
}  // namespace lolrt::cuda

int main() {
  using namespace lolrt::cuda;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const Case &test : kCases) run(test, seed);
  }
  return failures == 0 ? 0 : 1;
}
