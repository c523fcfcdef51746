#include "snapshot.h"

#include "error.h"
#include "json.h"

#include <ATen/ops/empty.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

namespace lolrt::session {

namespace {

constexpr const char *kDescription = "lolrt.snapshot", *kChecksums = "lolrt.checksums";
constexpr int64_t kFormat = 1;

struct Type {
  const char *name, *torch_name;
  at::ScalarType type;
};
constexpr std::array<Type, 5> kTypes{{{"F32", "torch.float32", at::kFloat},
                                      {"BF16", "torch.bfloat16", at::kBFloat16},
                                      {"I64", "torch.int64", at::kLong},
                                      {"U8", "torch.uint8", at::kByte},
                                      {"BOOL", "torch.bool", at::kBool}}};

const Type &type_of(at::ScalarType type) {
  for (const Type &one : kTypes)
    if (one.type == type) return one;
  throw Failure(LOLRT_INTERNAL, "a tensor of a snapshot has a type that files cannot hold");
}

// CRC-32 of zlib, going on from an earlier one.
uint32_t crc32(const void *data, size_t bytes, uint32_t before = 0) {
  static const auto table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = made[i] >> 1 ^ (made[i] & 1 ? 0xedb88320U : 0);
    }
    return made;
  }();
  uint32_t crc = ~before;
  for (const auto *byte = static_cast<const unsigned char *>(data); bytes > 0; --bytes, ++byte)
    crc = crc >> 8 ^ table[(crc ^ *byte) & 255];
  return ~crc;
}

std::string shape_text(const at::Tensor &x) {
  std::string text = "[";
  for (int64_t i = 0; i < x.dim(); ++i) text += (i ? ", " : "") + std::to_string(x.size(i));
  return text + "]";
}

uint32_t checksum(const std::string &name, const at::Tensor &x) {
  const std::string head = name + " " + type_of(x.scalar_type()).torch_name + " " + shape_text(x);
  return crc32(x.const_data_ptr(), x.nbytes(), crc32(head.data(), head.size()));
}

std::map<std::string, uint32_t> checksums(const Snapshot &snapshot) {
  std::map<std::string, uint32_t> found{{kDescription, crc32(snapshot.description.data(), snapshot.description.size())}};
  for (const auto &[name, x] : snapshot.tensors) found[name] = checksum(name, x);
  return found;
}

// A file's contents and a snapshot in it. `path` is for messages.
Snapshot parse(const std::string &bytes, const char *path) {
  expect(bytes.size() >= 8, "%s is no snapshot of a stream", path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  expect(length <= bytes.size() - 8, "%s is no snapshot of a stream", path);
  const Json header = Json::parse(std::string_view(bytes).substr(8, length));
  Snapshot snapshot;
  snapshot.description = header["__metadata__"][kDescription].text;
  const std::string saved_text = header["__metadata__"][kChecksums].text;
  for (const auto &[name, entry] : header.fields) {
    if (name == "__metadata__") continue;
    const Type *type = nullptr;
    for (const Type &one : kTypes)
      if (entry["dtype"].text == one.name) type = &one;
    expect(type != nullptr, "%s is of a type that no session of this library has; its pages are of the model's own",
           name.c_str());
    std::vector<int64_t> shape;
    int64_t elements = 1;
    for (const Json &size : entry["shape"].items) {
      shape.push_back(size.integer());
      expect(shape.back() >= 0 && !__builtin_mul_overflow(elements, shape.back(), &elements), "%s has an impossible shape",
             name.c_str());
    }
    const auto &offsets = entry["data_offsets"].items;
    expect(offsets.size() == 2, "%s has no two offsets", name.c_str());
    const int64_t begin = offsets[0].integer(), end = offsets[1].integer(),
                  held = static_cast<int64_t>(bytes.size() - 8 - length);
    int64_t needed = 0;
    expect(!__builtin_mul_overflow(elements, static_cast<int64_t>(c10::elementSize(type->type)), &needed) && begin >= 0 &&
               end <= held && end - begin == needed && begin <= end,
           "%s has another number of bytes than its shape takes", name.c_str());
    at::Tensor x = at::empty(shape, type->type);
    if (needed > 0) std::memcpy(x.data_ptr(), bytes.data() + 8 + length + begin, static_cast<size_t>(needed));
    snapshot.tensors[name] = x;
  }
  const Json saved = Json::parse(saved_text);
  const auto found = checksums(snapshot);
  expect(found.size() == saved.fields.size(), "not all that was saved is there");
  for (const auto &[name, sum] : found)
    expect(saved[name].integer() == static_cast<int64_t>(sum), "%s is not what was saved", name.c_str());
  const Json described = Json::parse(snapshot.description);
  expect(described["format"].integer() == kFormat, "it has another format, not %lld", static_cast<long long>(kFormat));
  return snapshot;
}

void require_written(bool holds, const std::string &path) {
  if (!holds)
    throw Failure(LOLRT_INVALID_ARGUMENT, "cannot write " + path + " (" + std::strerror(errno) + "); choose another place");
}

void sync(const std::string &path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require_written(file >= 0, path);
  const bool done = fsync(file) == 0;
  close(file);
  require_written(done, path);
}

}  // namespace

Snapshot Snapshot::read(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  expect(file.good(), "%s cannot be read: %s", path.c_str(), std::strerror(errno));
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  try {
    return parse(bytes, path.c_str());
  } catch (const Failure &failure) {
    throw Failure(LOLRT_INVALID_ARGUMENT,
                  path + " is no snapshot of a stream, or a damaged one (" + failure.what() + "): take an earlier one");
  }
}

void Snapshot::write(const std::string &path) const {
  std::string sums;
  for (const auto &[name, sum] : checksums(*this))
    sums += (sums.empty() ? "" : ", ") + in_quotes(name) + ": " + std::to_string(sum);
  std::string header = "{\"__metadata__\": {" + in_quotes(kDescription) + ": " + in_quotes(description) + ", " +
                       in_quotes(kChecksums) + ": " + in_quotes("{" + sums + "}") + "}";
  size_t end = 0;
  for (const auto &[name, x] : tensors) {
    const size_t begin = end;
    end += x.nbytes();
    header += ", " + in_quotes(name) + ": {\"dtype\": \"" + type_of(x.scalar_type()).name + "\", \"shape\": " + shape_text(x) +
              ", \"data_offsets\": [" + std::to_string(begin) + ", " + std::to_string(end) + "]}";
  }
  header += "}";
  header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');  // so that the data begin at a multiple of 64
  const uint64_t length = header.size();
  const std::string partial = path + "." + std::to_string(getpid()) + ".partial";
  try {
    std::ofstream file(partial, std::ios::binary);
    file.write(reinterpret_cast<const char *>(&length), sizeof length);
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto &[name, x] : tensors)
      file.write(static_cast<const char *>(x.const_data_ptr()), static_cast<std::streamsize>(x.nbytes()));
    file.close();
    require_written(file.good(), path);
    sync(partial);
    require_written(std::rename(partial.c_str(), path.c_str()) == 0, path);
  } catch (...) {
    unlink(partial.c_str());
    throw;
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  sync(folder.empty() ? "." : folder);
}

}  // namespace lolrt::session
