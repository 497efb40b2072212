// Parsing of sizes, ranges and lists, tables and CSV, suggestions: the shared pieces of the verbs, without running the program.
#include "args.h"

#include <gtest/gtest.h>

#include <cmath>

#include "table.h"
#include "tq4/error.h"

namespace tq4::cli {
namespace {

template <class Call>
std::string usage_error(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Usage);
    return error.what();
  }
  return "(no error)";
}

TEST(Args, Sizes) {
  EXPECT_EQ(parse_size("4096"), 4096);
  EXPECT_EQ(parse_size("32k"), 32768);
  EXPECT_EQ(parse_size("4M"), 4 << 20);
  EXPECT_EQ(parse_size("2G"), std::int64_t{2} << 30);
  for (const char* bad : {"", "k", "-1", "1.5k", "12kk", "0x10", "99999999999G", "9223372036854775808"})
    EXPECT_NE(usage_error([&] { parse_size(bad); }).find("is not a size"), std::string::npos) << bad;
}

TEST(Args, RangesOfSizes) {
  using List = std::vector<std::int64_t>;
  EXPECT_EQ(parse_sizes("1k..32k"), (List{1024, 2048, 4096, 8192, 16384, 32768}));
  EXPECT_EQ(parse_sizes("1k..3k"), (List{1024, 2048, 3072}));
  EXPECT_EQ(parse_sizes("1k..4k+1k"), (List{1024, 2048, 3072, 4096}));
  EXPECT_EQ(parse_sizes("1..6+2"), (List{1, 3, 5}));
  EXPECT_EQ(parse_sizes("1..64*4"), (List{1, 4, 16, 64}));
  EXPECT_EQ(parse_sizes("1k,4k, 32k"), (List{1024, 4096, 32768}));
  EXPECT_EQ(parse_sizes("8..8"), (List{8}));
  for (const char* bad : {"4k..1k", "0..8", "1..8+0", "1..8*1", "1,,2", "1..", "..2", "1..100k+1"})
    EXPECT_NE(usage_error([&] { parse_sizes(bad); }), "(no error)") << bad;
}

TEST(Args, LayersBitsNamesLimits) {
  EXPECT_EQ(parse_indices("0..3,30"), (std::vector<int>{0, 1, 2, 3, 30}));
  EXPECT_EQ(parse_indices("5,1..2,2"), (std::vector<int>{1, 2, 5}));
  for (const char* bad : {"", "a", "3..1", "-1", "1..", "1..200000"})
    EXPECT_NE(usage_error([&] { parse_indices(bad); }), "(no error)") << bad;
  EXPECT_EQ(parse_bits("3/4"), (std::vector<std::string>{"3", "4"}));
  EXPECT_EQ(parse_bits("2.5,4,4"), (std::vector<std::string>{"2.5", "4"}));
  for (const char* bad : {"0", "9", "1.5", "four", "3/", ""}) EXPECT_NE(usage_error([&] { parse_bits(bad); }), "(no error)") << bad;
  EXPECT_EQ(parse_names("k4v3, fp8"), (std::vector<std::string>{"k4v3", "fp8"}));
  EXPECT_NE(usage_error([] { parse_names("a,,b"); }), "(no error)");
  EXPECT_EQ(parse_limit("out_error=0.05").metric, "out_error");
  EXPECT_DOUBLE_EQ(parse_limit("out_error=0.05").value, 0.05);
  for (const char* bad : {"x", "=1", "x=", "x=nan", "x=1y"}) EXPECT_NE(usage_error([&] { parse_limit(bad); }), "(no error)") << bad;
  EXPECT_EQ(parse_seed("18446744073709551615"), ~std::uint64_t{0});
  EXPECT_NE(usage_error([] { parse_seed("-1"); }), "(no error)");
}

TEST(Args, Formats) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1.00 KiB");
  EXPECT_EQ(format_bytes(3 * 1024 * 1024 + 100 * 1024), "3.10 MiB");
  EXPECT_EQ(format_seconds(12.34e-6), "12 us");
  EXPECT_EQ(format_seconds(0.0123), "12.3 ms");
  EXPECT_EQ(format_seconds(185), "3 min 05 s");
  EXPECT_EQ(format_seconds(7260), "2 h 01 min");
}

TEST(Args, NearestWord) {
  const std::vector<std::string> verbs{"compress", "decompress", "inspect", "codebook"};
  EXPECT_EQ(nearest("comprss", verbs), "compress");
  EXPECT_EQ(nearest("inspct", verbs), "inspect");
  EXPECT_EQ(nearest("frobnicate", verbs), "");
}

TEST(Table, TextAndCsvFromTheSameCells) {
  Table table({{"layer", "", true}, {"error_rel", "rel. error"}, {"bytes"}});
  table.add({"a,b", Cell::fixed(0.0093456, 4), Cell::bytes(2048)});
  table.add_rule();
  table.add({"total \"x\"", Cell::number(std::nan("")), Cell::bytes(10)});
  EXPECT_EQ(table.text(),
            "layer      rel. error     bytes\n"
            "-------------------------------\n"
            "a,b            0.0093  2.00 KiB\n"
            "-------------------------------\n"
            "total \"x\"           -      10 B\n");
  EXPECT_EQ(table.csv(), "layer,error_rel,bytes\n\"a,b\",0.0093456,2048\n\"total \"\"x\"\"\",,10\n");
  EXPECT_THROW(table.add({"one"}), Error);
}

}  // namespace
}  // namespace tq4::cli
