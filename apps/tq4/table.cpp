// Text and CSV of a table; see table.h. CSV follows RFC 4180 with LF line ends.
#include "table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "args.h"
#include "tq4/error.h"

namespace tq4::cli {
namespace {

std::string csv_field(const std::string& value) {
  if (value.find_first_of(",\"\n\r") == std::string::npos) return value;
  std::string quoted = "\"";
  for (const char c : value) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + '"';
}

}  // namespace

Cell::Cell(int number) : Cell(fmt::to_string(number)) {}
Cell::Cell(std::int64_t number) : Cell(fmt::to_string(number)) {}
Cell::Cell(std::uint64_t number) : Cell(fmt::to_string(number)) {}

Cell Cell::number(double value, int digits) {
  if (std::isnan(value)) return {"-", ""};
  return {fmt::format("{:.{}g}", value, digits), fmt::format("{}", value)};
}

Cell Cell::fixed(double value, int decimals) {
  if (std::isnan(value)) return {"-", ""};
  return {fmt::format("{:.{}f}", value, decimals), fmt::format("{}", value)};
}

Cell Cell::bytes(std::uint64_t count) { return {format_bytes(static_cast<double>(count)), fmt::to_string(count)}; }

void Table::add(std::vector<Cell> cells) {
  if (cells.size() != columns_.size())
    throw Error(ErrorCode::Runtime, fmt::format("{} cells for {} columns", cells.size(), columns_.size()), "table");
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    const Column& column = columns_[c];
    std::size_t width = display_width(column.title.empty() ? column.name : column.title);
    for (const auto& row : rows_) width = std::max(width, display_width(row[c].text));
    widths.push_back(width);
  }
  const auto line = [&](auto&& cell_text) {
    std::string out;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const std::string& text = cell_text(c);
      const std::string padding(widths[c] - display_width(text), ' ');
      if (c != 0) out += "  ";
      out += columns_[c].left ? text + padding : padding + text;
    }
    out.erase(out.find_last_not_of(' ') + 1);
    return out + '\n';
  };
  std::size_t total = widths.empty() ? 0 : 2 * (widths.size() - 1);
  for (const std::size_t width : widths) total += width;
  const std::string rule = std::string(total, '-') + '\n';

  std::string out =
      line([&](std::size_t c) -> const std::string& { return columns_[c].title.empty() ? columns_[c].name : columns_[c].title; });
  out += rule;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    if (r != 0 && std::find(rules_.begin(), rules_.end(), r) != rules_.end()) out += rule;
    out += line([&](std::size_t c) -> const std::string& { return rows_[r][c].text; });
  }
  return out;
}

std::string Table::csv() const {
  std::string out;
  for (std::size_t c = 0; c < columns_.size(); ++c) out += (c == 0 ? "" : ",") + csv_field(columns_[c].name);
  out += '\n';
  for (const auto& row : rows_) {
    for (std::size_t c = 0; c < row.size(); ++c) out += (c == 0 ? "" : ",") + csv_field(row[c].value);
    out += '\n';
  }
  return out;
}

std::size_t display_width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace tq4::cli
