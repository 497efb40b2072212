// A table that is printed for people (aligned text) and written for programs (CSV) from the same cells, so that the two never disagree.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tq4::cli {

/// What a cell shows and what it means: `text` goes to the terminal, `value` to the CSV file.
struct Cell {
  std::string text;
  std::string value;
  Cell(std::string both) : text(both), value(std::move(both)) {}
  Cell(const char* both) : Cell(std::string(both)) {}
  Cell(std::string shown, std::string raw) : text(std::move(shown)), value(std::move(raw)) {}
  Cell(int number);
  Cell(std::int64_t number);
  Cell(std::uint64_t number);
  /// `digits` significant digits in the text, all of them in the CSV. NaN shows as "-" and is empty in the CSV.
  static Cell number(double value, int digits = 4);
  /// `decimals` digits after the point in the text, all of them in the CSV. NaN as above.
  static Cell fixed(double value, int decimals);
  /// "4.06 MiB" in the text, the count in the CSV.
  static Cell bytes(std::uint64_t count);
};

struct Column {
  std::string name = {};   ///< in the CSV header, with its unit: "time_us"; in the text unless `title` is set
  std::string title = {};  ///< heading in the text; empty = name
  bool left = false;       ///< aligned left (words); numbers are aligned right
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  /// As many cells as columns.
  void add(std::vector<Cell> cells);
  /// A line between the rows above and below (totals); not in the CSV.
  void add_rule() { rules_.push_back(rows_.size()); }
  std::size_t rows() const { return rows_.size(); }
  std::string text() const;
  std::string csv() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
  std::vector<std::size_t> rules_;
};

/// Columns a UTF-8 text takes on a terminal (code points).
std::size_t display_width(std::string_view text);

}  // namespace tq4::cli
