// A stream of a packaged model in a program without Python.
//
//     embed PACKAGE CHUNKS --seed SEED --prompt FILE [--then CHUNK FILE]... [--save SNAPSHOT]
//     embed PACKAGE CHUNKS --resume SNAPSHOT [--then CHUNK FILE]... [--save SNAPSHOT]
//
// makes so many chunks, and writes their frames to the standard output: RGB, 8 bits each. A FILE has the embeddings of a prompt,
// rows of float32; those after --then are followed from that chunk on, counted from 0. Prints a line about each chunk to the
// standard error.
#include <lolrt/session.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int64_t kTextDim = 64;  // of tiny's text

void require(lolrt_status status) {
  if (status == LOLRT_OK) return;
  std::fprintf(stderr, "lolrt: %s\n", lolrt_session_last_error());
  std::exit(1);
}

// Embeddings of a text.
class Prompt {
 public:
  explicit Prompt(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    shape_[0] = static_cast<int64_t>(bytes_.size() / (kTextDim * sizeof(float)));
    view_ = {bytes_.data(), {LOLRT_DEVICE_CPU, 0}, 2, {LOLRT_CODE_FLOAT, 32, 1}, shape_, nullptr, 0};
  }
  Prompt(const Prompt &) = delete;
  const lolrt_tensor *view() const { return &view_; }

 private:
  std::vector<char> bytes_;
  int64_t shape_[2] = {0, kTextDim};
  lolrt_tensor view_;
};

size_t bytes_of(const lolrt_tensor &tensor) {
  size_t bytes = tensor.dtype.bits / 8;
  for (int32_t i = 0; i < tensor.ndim; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
  return bytes;
}

int usage() {
  std::fprintf(
      stderr,
      "usage: embed PACKAGE CHUNKS (--seed SEED --prompt FILE | --resume SNAPSHOT) [--then CHUNK FILE]... [--save SNAPSHOT]\n");
  return 2;
}

}  // namespace

int main(int count, char **words) {
  std::string prompt, resumed, saved;
  std::map<long long, std::string> later;
  uint64_t seed = 0;
  for (int i = 3; i < count; ++i) {
    const std::string option = words[i];
    if (i + (option == "--then" ? 2 : 1) >= count) return usage();
    if (option == "--seed") {
      seed = std::strtoull(words[++i], nullptr, 10);
    } else if (option == "--prompt") {
      prompt = words[++i];
    } else if (option == "--resume") {
      resumed = words[++i];
    } else if (option == "--save") {
      saved = words[++i];
    } else if (option == "--then") {
      later[std::atoll(words[i + 1])] = words[i + 2];
      i += 2;
    } else {
      return usage();
    }
  }
  if (count < 3 || prompt.empty() == resumed.empty()) return usage();

  lolrt_session *opened = nullptr;
  if (resumed.empty())
    require(lolrt_session_open(words[1], Prompt(prompt).view(), seed, &opened));
  else
    require(lolrt_session_resume(words[1], resumed.c_str(), &opened));
  const std::unique_ptr<lolrt_session, decltype(&lolrt_session_close)> session(opened, lolrt_session_close);

  const long long chunks = std::atoll(words[2]);
  for (long long i = 0; i < chunks; ++i) {
    if (const auto next = later.find(i); next != later.end())
      require(lolrt_session_set_prompt(session.get(), Prompt(next->second).view(), LOLRT_RECACHE_WINDOW, 1));
    lolrt_chunk chunk;
    require(lolrt_session_next_chunk(session.get(), &chunk));
    if (std::fwrite(chunk.frames.data, 1, bytes_of(chunk.frames), stdout) != bytes_of(chunk.frames)) {
      std::perror("embed");
      return 1;
    }
    std::fprintf(stderr, "latent frame %lld: %lld frames of %lld x %lld\n", static_cast<long long>(chunk.first_frame),
                 static_cast<long long>(chunk.frames.shape[0]), static_cast<long long>(chunk.frames.shape[2]),
                 static_cast<long long>(chunk.frames.shape[1]));
  }
  if (!saved.empty()) require(lolrt_session_save(session.get(), saved.c_str()));
  return 0;
}
