// JSON, as far as snapshots need it: a value with its text, so that parts can be compared and written again as they are.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lolrt::session {

struct Json {
  enum Kind { other, string, array, object };  // other: a number, true, false or null

  Kind kind = other;
  std::string_view raw;  // where it stands in the text
  std::string text;      // a string without quotes and escapes
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  // The value of a whole text, which must outlive it. Throws Failure.
  static Json parse(std::string_view text);

  // The field of an object. Throws Failure if there is none.
  const Json &operator[](std::string_view name) const;
  const Json *find(std::string_view name) const;
  int64_t integer() const;
};

// A string in quotes, in ASCII. The string is ASCII as well.
std::string in_quotes(std::string_view text);

// The first difference between two values, such as "rope.sigma is 0.8 in the saved one and 0 here"; "" if there is none. Fields
// of the name `except` are not compared.
std::string difference(const Json &saved, const Json &here, std::string_view except, const std::string &path = "");

}  // namespace lolrt::session
