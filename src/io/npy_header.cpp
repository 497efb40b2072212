// See npy_header.h. The literal is scanned by hand: three keys, strings, booleans and a tuple of whole numbers, nothing else.
#include "io/npy_header.h"

#include <cctype>
#include <cstdlib>
#include <string_view>

#include "io/file.h"

namespace tq4::io {
namespace {

class Literal {
 public:
  Literal(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  void expect(char c) {
    if (!take(c)) fail();
  }
  bool take(char c) {
    skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool at(char c) {
    skip();
    return at_ < text_.size() && text_[at_] == c;
  }
  std::string string() {
    skip();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail();
    const char quote = text_[at_++];
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail();
    std::string value(text_.substr(at_, end - at_));
    at_ = end + 1;
    return value;
  }
  bool boolean() {
    skip();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return value;
      }
    }
    fail();
  }
  std::uint64_t whole() {
    skip();
    std::uint64_t value = 0;
    const std::size_t begin = at_;
    while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) && at_ - begin < 18)
      value = value * 10 + static_cast<std::uint64_t>(text_[at_++] - '0');
    if (at_ == begin || (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])))) fail();
    return value;
  }
  /// A bracketed value we do not interpret (the field list of a structured type).
  void skip_list() {
    int depth = 0;
    do {
      if (at_ >= text_.size()) fail();
      const char c = text_[at_++];
      depth += c == '[' || c == '(' ? 1 : c == ']' || c == ')' ? -1 : 0;
    } while (depth > 0);
  }
  [[noreturn]] void fail() const { bad_input(where_, "the npy header is damaged near byte " + std::to_string(at_) + " of its dictionary"); }

 private:
  void skip() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  std::string_view text_;
  const std::string& where_;
  std::size_t at_ = 0;
};

void read_type(NpyHeader& header) {
  const std::string& descr = header.descr;
  if (descr.size() >= 3) header.element_bytes = static_cast<std::size_t>(std::atoi(descr.c_str() + 2)) * (descr[1] == 'U' ? 4 : 1);
  if (header.element_bytes > (std::size_t{1} << 30)) header.element_bytes = 0;
  if (descr == "<f2")
    header.dtype = DType::F16;
  else if (descr == "<f4")
    header.dtype = DType::F32;
  else if (descr == "<f8")
    header.dtype = DType::F64;
  else if (descr == "|V2" || descr == "<V2")
    header.dtype = DType::BF16;  // how NumPy saves ml_dtypes' bfloat16
  else if (descr.starts_with(">f"))
    header.problem = "is big-endian (" + descr + "); save it with .astype(\"<f4\") or .astype(\"<f2\")";
  else if (descr == "<u2" || descr == "<i2")
    header.problem = "holds 16-bit integers; npy has no way to mark them as bfloat16, save float32 or use safetensors";
  else
    header.problem = "has element type \"" + descr.substr(0, 20) + "\"; use float16 or float32";
}

}  // namespace

NpyHeader parse_npy_header(std::span<const std::uint8_t> bytes, const std::string& where) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!all.starts_with("\x93NUMPY") || all.size() < 10) bad_input(where, "not an npy array");
  const int version = bytes[6];
  if (version < 1 || version > 3) bad_input(where, "npy version " + std::to_string(version) + " is not known");
  const std::size_t prefix = version == 1 ? 10 : 12;
  if (bytes.size() < prefix) bad_input(where, "the npy header is cut short");
  std::size_t length = bytes[8] | static_cast<std::size_t>(bytes[9]) << 8;
  if (version > 1) length |= static_cast<std::size_t>(bytes[10]) << 16 | static_cast<std::size_t>(bytes[11]) << 24;
  if (length > bytes.size() - prefix) bad_input(where, "the npy header says " + std::to_string(length) + " bytes and is cut short");
  NpyHeader header;
  header.data_start = prefix + length;
  Literal literal(all.substr(prefix, length), where);
  bool fortran = false, seen_descr = false, seen_order = false, seen_shape = false;
  literal.expect('{');
  while (!literal.take('}')) {
    const std::string key = literal.string();
    literal.expect(':');
    if (key == "descr" && !seen_descr) {
      seen_descr = true;
      if (literal.at('[')) {
        literal.skip_list();
        header.problem = "has a structured type; use float16 or float32";
      } else {
        header.descr = literal.string();
        read_type(header);
      }
    } else if (key == "fortran_order" && !seen_order) {
      seen_order = true;
      fortran = literal.boolean();
    } else if (key == "shape" && !seen_shape) {
      seen_shape = true;
      literal.expect('(');
      while (!literal.take(')')) {
        header.shape.push_back(literal.whole());
        if (header.shape.size() > 32) literal.fail();
        if (!literal.take(',')) {
          literal.expect(')');
          break;
        }
      }
    } else {
      literal.fail();
    }
    if (!literal.take(',')) {
      literal.expect('}');
      break;
    }
  }
  if (!seen_descr || !seen_order || !seen_shape) bad_input(where, "the npy header lacks descr, fortran_order or shape");
  if (fortran && header.shape.size() > 1) {
    header.dtype.reset();
    header.problem = "is in Fortran order; save numpy.ascontiguousarray of it";
  }
  return header;
}

}  // namespace tq4::io
