#include "json.h"

#include "error.h"

#include <cctype>
#include <cstdlib>

namespace lolrt::session {

namespace {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = next(0);
    space();
    check(at_ == text_.size());
    return value;
  }

 private:
  void check(bool holds) const { expect(holds, "the text is no JSON at byte %zu", at_); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    space();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  Json next(int depth) {
    check(depth < 32);
    space();
    Json value;
    const size_t begin = at_;
    if (peek() == '"') {
      value.kind = Json::string;
      value.text = string();
    } else if (take('[')) {
      value.kind = Json::array;
      for (bool first = true; !take(']'); first = false) {
        check(first || take(','));
        value.items.push_back(next(depth + 1));
      }
    } else if (take('{')) {
      value.kind = Json::object;
      for (bool first = true; !take('}'); first = false) {
        check(first || take(','));
        space();
        std::string name = string();
        check(take(':'));
        value.fields.emplace_back(std::move(name), next(depth + 1));
      }
    } else {
      while (std::isalnum(static_cast<unsigned char>(peek())) || std::string_view("+-.").find(peek()) != std::string_view::npos)
        ++at_;
      check(at_ > begin);
    }
    value.raw = text_.substr(begin, at_ - begin);
    return value;
  }

  std::string string() {
    check(peek() == '"');
    ++at_;
    std::string found;
    for (;;) {
      check(at_ < text_.size());
      char c = text_[at_++];
      if (c == '"') return found;
      if (c == '\\') {
        c = peek();
        ++at_;
        if (c == 'u') {
          append_utf8(found, hex4());
          continue;
        }
        const size_t which = std::string_view("\"\\/bfnrt").find(c);
        check(which != std::string_view::npos);
        c = "\"\\/\b\f\n\r\t"[which];
      }
      found.push_back(c);
    }
  }

  unsigned hex4() {
    check(at_ + 4 <= text_.size());
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char digit = text_[at_++];
      check(std::isxdigit(static_cast<unsigned char>(digit)));
      code = 16 * code +
             static_cast<unsigned>(std::isdigit(static_cast<unsigned char>(digit)) ? digit - '0' : (digit | 32) - 'a' + 10);
    }
    return code;
  }

  // Halves of a pair are kept apart: no name of a tensor or a field has them.
  static void append_utf8(std::string &text, unsigned code) {
    if (code < 0x80) {
      text.push_back(static_cast<char>(code));
    } else if (code < 0x800) {
      text.push_back(static_cast<char>(0xc0 | code >> 6));
      text.push_back(static_cast<char>(0x80 | (code & 63)));
    } else {
      text.push_back(static_cast<char>(0xe0 | code >> 12));
      text.push_back(static_cast<char>(0x80 | (code >> 6 & 63)));
      text.push_back(static_cast<char>(0x80 | (code & 63)));
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Reader(text).whole(); }

const Json *Json::find(std::string_view name) const {
  for (const auto &[key, value] : fields)
    if (key == name) return &value;
  return nullptr;
}

const Json &Json::operator[](std::string_view name) const {
  const Json *found = find(name);
  expect(found != nullptr, "there is no field %.*s", static_cast<int>(name.size()), name.data());
  return *found;
}

int64_t Json::integer() const {
  const std::string digits(raw);
  char *end = nullptr;
  const long long value = std::strtoll(digits.c_str(), &end, 10);
  expect(kind == other && end == digits.c_str() + digits.size(), "%.40s is no whole number", digits.c_str());
  return value;
}

std::string in_quotes(std::string_view text) {
  std::string found = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') found.push_back('\\');
    found.push_back(c);
  }
  return found + '"';
}

std::string difference(const Json &saved, const Json &here, std::string_view except, const std::string &path) {
  if (saved.kind != Json::object || here.kind != Json::object) {
    if (saved.raw == here.raw) return "";
    return path + " is " + std::string(saved.raw.substr(0, 80)) + " in the saved one and " + std::string(here.raw.substr(0, 80)) +
           " here";
  }
  const std::string below = path.empty() ? "" : path + ".";
  for (const auto &[name, value] : here.fields) {
    if (name == except) continue;
    const Json *other = saved.find(name);
    const std::string found =
        other ? difference(*other, value, except, below + name) : below + name + " is missing in the saved one";
    if (!found.empty()) return found;
  }
  for (const auto &[name, value] : saved.fields)
    if (here.find(name) == nullptr) return below + name + " is " + std::string(value.raw.substr(0, 80)) + " in the saved one";
  return "";
}

}  // namespace lolrt::session
