// Phases as integers. One turn is 2^64, so that increment * offset wraps exactly where the angle does, at any frame number.
#include "core/status.h"
#include "core/tensor.h"

#include <cmath>

namespace lolrt {
namespace {

using Wide = unsigned __int128;

// floor(2^130 / (2 pi)), 128 significant bits, in two halves.
constexpr uint64_t kInverseTurnHigh = 0xa2f9836e4e441529;
constexpr uint64_t kInverseTurnLow = 0xfc2757d1f534ddc0;
// Above it, the 128 bits of the constant would not suffice for a correctly rounded increment.
constexpr double kMaxRadians = 4294967296.0;

uint64_t increment(double radians) {
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(radians), &exponent);
  const auto mantissa = static_cast<uint64_t>(std::ldexp(fraction, 53));  // |radians| = mantissa * 2^(exponent - 53)
  // |radians| / (2 pi) * 2^64 = mantissa * constant * 2^-(drop + 64), a product of 181 bits, of which `high` has the top 117.
  const Wide low = static_cast<Wide>(mantissa) * kInverseTurnLow;
  const Wide high = static_cast<Wide>(mantissa) * kInverseTurnHigh + static_cast<uint64_t>(low >> 64);
  const int drop = 55 - exponent;  // 22 or more, since |radians| <= 2^32
  if (drop >= 118) return 0;       // less than half a unit
  const auto turns = static_cast<uint64_t>((high + (static_cast<Wide>(1) << (drop - 1))) >> drop);
  return radians < 0 ? 0 - turns : turns;
}

}  // namespace
}  // namespace lolrt

using namespace lolrt;

lolrt_status lolrt_phase_increments(const double *radians_per_frame, uint64_t *turns_per_frame, int64_t count) {
  return guarded([&] {
    if (count < 0) fail(LOLRT_INVALID_ARGUMENT, "phase_increments: count is %lld", static_cast<long long>(count));
    if (count > 0 && (radians_per_frame == nullptr || turns_per_frame == nullptr)) {
      fail(LOLRT_INVALID_ARGUMENT, "phase_increments: a pointer is NULL");
    }
    for (int64_t i = 0; i < count; ++i) {
      if (!(std::fabs(radians_per_frame[i]) <= kMaxRadians)) {
        fail(LOLRT_INVALID_ARGUMENT, "phase_increments: radians_per_frame[%lld] is %g; expected a number of magnitude <= 2^32",
             static_cast<long long>(i), radians_per_frame[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i) turns_per_frame[i] = increment(radians_per_frame[i]);
  });
}

lolrt_status lolrt_rotation_table(const lolrt_tensor *turns_per_frame, const lolrt_tensor *offsets_frames,
                                  const lolrt_tensor *out) {
  return guarded([&] {
    const Checker check("rotation_table");
    const View turns = check("turns_per_frame", turns_per_frame, DType::uint64, {{"heads"}, {"pairs"}});
    const View offsets = check("offsets_frames", offsets_frames, DType::int64, {{"pages"}, {"frames"}});
    const View table = check.output(
        "out", out, DType::float32,
        {{"pages", offsets.size(0)}, {"frames", offsets.size(1)}, {"heads", turns.size(0)}, {"pairs", turns.size(1)}, {"2", 2}});
    constexpr double kRadiansPerUnit = 0x1.921fb54442d18p+2 * 0x1p-64;  // 2 pi / 2^64
    float *to = table.data<float>();
    for (int64_t i = 0; i < offsets.elements(); ++i) {
      const auto offset = static_cast<uint64_t>(offsets.data<int64_t>()[i]);
      for (int64_t j = 0; j < turns.elements(); ++j) {
        // As a signed number the phase is within half a turn of zero, where sin and cos are most accurate.
        const auto phase = static_cast<int64_t>(turns.data<uint64_t>()[j] * offset);
        const double radians = static_cast<double>(phase) * kRadiansPerUnit;
        *to++ = static_cast<float>(std::cos(radians));
        *to++ = static_cast<float>(std::sin(radians));
      }
    }
  });
}
