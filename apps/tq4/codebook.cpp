// tq4 codebook: the Lloyd-Max quantizers themselves, with their error and entropy next to the paper's bound and Shannon's.
#include <fmt/format.h>

#include <cmath>

#include "args.h"
#include "common_args.h"
#include "report.h"
#include "tq4/codebook.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::vector<std::string> bits{"4"};
  int dim = 128;
  CodebookKind kind = CodebookKind::Sphere;
  std::string kind_name = "sphere";
  OutputOptions output;
};

CodebookKind parse_kind(const std::string& text) {
  if (text == "sphere") return CodebookKind::Sphere;
  if (text == "gaussian") return CodebookKind::Gaussian;
  if (text == "turboquant-vllm") return CodebookKind::TurboquantVllm;
  if (text == "vllm") return CodebookKind::Vllm;
  throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of sphere, gaussian, turboquant-vllm, vllm", text));
}

void run(const Options& options) {
  check_outputs(options.output);
  Table points({{"bits", "bits"}, {"index"}, {"centroid"}, {"upper_boundary", "upper boundary"}, {"centroid_sqrt_d", "x sqrt(d)"}});
  std::string summary;
  nlohmann::json books = nlohmann::json::array();
  for (const std::string& text : options.bits) {
    if (text.size() != 1)
      throw Error(ErrorCode::Usage, "a codebook has a whole number of bits, 1 to 8 (2.5 mixes those of 2 and 3)", "--bits");
    const Codebook book = make_codebook(options.kind, text[0] - '0', options.dim);
    const CodebookStats stats = codebook_stats(book);
    if (points.rows() != 0) points.add_rule();
    for (std::size_t i = 0; i < book.centroids.size(); ++i) {
      points.add({book.bits, static_cast<std::uint64_t>(i),
                  Cell(fmt::format("{:+.12f}", book.centroids[i]), fmt::format("{}", book.centroids[i])),
                  i < book.boundaries.size() ? Cell(fmt::format("{:+.12f}", book.boundaries[i]), fmt::format("{}", book.boundaries[i]))
                                             : Cell("-", ""),
                  Cell(fmt::format("{:+.6f}", book.centroids[i] * std::sqrt(book.dim)),
                       fmt::format("{}", book.centroids[i] * std::sqrt(book.dim)))});
    }
    summary += fmt::format(
        "{} bits, d = {}, {}: squared error of a unit vector {:.6f}\n"
        "  paper's bound sqrt(3) pi/2 4^-b = {:.6f} ({:.3f}x), Shannon 4^-b = {:.6f} ({:.3f}x)\n"
        "  entropy of the index {:.4f} of {} bits; expected cosine {:.4f}\n",
        book.bits, book.dim, options.kind_name, stats.mse, stats.paper_bound, stats.mse / stats.paper_bound, stats.shannon_bound,
        stats.mse / stats.shannon_bound, stats.entropy_bits, book.bits, std::sqrt(1 - stats.mse));
    books.push_back({{"bits", book.bits},
                     {"dim", book.dim},
                     {"kind", options.kind_name},
                     {"centroids", book.centroids},
                     {"boundaries", book.boundaries},
                     {"mse", stats.mse},
                     {"entropy_bits", stats.entropy_bits},
                     {"paper_bound", stats.paper_bound},
                     {"shannon_bound", stats.shannon_bound}});
  }
  nlohmann::json result = result_envelope("codebook");
  result["codebooks"] = std::move(books);
  emit(options.output, result, points, points.text() + '\n' + summary);
}

}  // namespace

Action add_codebook(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Print centroids, boundaries, error and entropy of a codebook, next to the paper's bounds",
           {{"tq4 codebook --bits 4 --dim 128", "the 16 centroids that head_dim 128 uses"},
            {"tq4 codebook --bits 1,2,3,4 --kind gaussian --json -", "four codebooks of N(0, 1/d) as JSON"}});
  add_parsed(app, "--bits", options->bits, parse_bits, "BITS", "4", "Bits an index, 1 to 8; several: 1,2,3,4").group("Codebook");
  add_parsed(app, "--dim,--head-dim", options->dim, parse_count, "D", "128", "Dimension of the unit vectors").group("Codebook");
  const auto parse = [options](const std::string& text) {
    options->kind_name = text;
    return parse_kind(text);
  };
  add_parsed(app, "--kind", options->kind, parse, "KIND", "sphere",
             "sphere (exact density of a coordinate), gaussian (N(0, 1/d)), turboquant-vllm or vllm (the peers' variants)")
      .group("Codebook");
  add_output_options(app, options->output, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
