// tq4 convert: the same codes in another place: container to page caches, page caches to container, one page layout to another. Nothing is
// decoded; the only thing that may change is the width of stored scales, where the layout allows one width only (said on stderr).
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "args.h"
#include "common_args.h"
#include "paths.h"
#include "planes_io.h"
#include "progress.h"
#include "report.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string input, output, calibration, codec;
  std::optional<LayoutKind> layout, from_layout;
  bool padded = false, heads_outer = false;
  int block_size = 16, head_dim = 0, num_kv_heads = 0, sequence = 0;
  std::optional<std::vector<std::int32_t>> block_table;
  std::optional<std::int64_t> num_blocks;
  Selection selection;
  OutputOptions output_options;
};

LayoutKind parse_layout(const std::string& text) { return layout_from_name(text); }

std::vector<std::int32_t> parse_table(std::string_view text) {
  std::vector<std::int32_t> pages;
  for (const std::string& page : parse_names(text)) pages.push_back(parse_count(page));
  return pages;
}

PageLayout target_layout(const Options& options, const CodecSpec& spec, const LayerInfo& shape) {
  if (options.padded) {
    if (*options.layout != LayoutKind::TurboquantVllm)
      throw Error(ErrorCode::Usage, "is a variant of the layout turboquant-vllm", "--padded");
    return padded_turboquant_vllm_layout(spec, shape.num_kv_heads, shape.head_dim, options.block_size);
  }
  PageLayout layout = make_layout(*options.layout, spec, shape.num_kv_heads, shape.head_dim, options.block_size);
  if (options.heads_outer) {
    if (layout.kind != LayoutKind::Vllm) throw Error(ErrorCode::Usage, "is a variant of the layout vllm", "--heads-outer");
    layout.token_stride = layout.head_stride;
    layout.head_stride = layout.block_size * layout.token_stride;
  }
  return layout;
}

PagedLayer place(const Options& options, const CodecSpec& spec, const LayerInfo& shape) {
  PagedLayer layer;
  layer.layer = shape.layer;
  layer.layout = target_layout(options, spec, shape);
  layer.blocks_per_seq = (shape.tokens + options.block_size - 1) / options.block_size;
  if (options.block_table) {
    layer.block_table = *options.block_table;
    if (static_cast<std::int64_t>(layer.block_table.size()) != layer.blocks_per_seq)
      throw Error(ErrorCode::Usage,
                  fmt::format("names {} pages; layer {} needs {}", layer.block_table.size(), shape.layer, layer.blocks_per_seq),
                  "--block-table");
  } else {
    for (std::int64_t i = 0; i < layer.blocks_per_seq; ++i) layer.block_table.push_back(static_cast<std::int32_t>(i));
  }
  std::vector<std::int32_t> sorted = layer.block_table;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    throw Error(ErrorCode::Usage, "names a page twice", "--block-table");
  layer.num_blocks = sorted.empty() ? 0 : std::int64_t{sorted.back()} + 1;
  if (options.num_blocks) {
    if (*options.num_blocks < layer.num_blocks)
      throw Error(ErrorCode::Usage, fmt::format("layer {} uses page {}", shape.layer, layer.num_blocks - 1), "--num-blocks");
    layer.num_blocks = *options.num_blocks;
  }
  if (shape.tokens > std::numeric_limits<std::int32_t>::max())
    throw Error(ErrorCode::Unsupported, "seq_lens are 32-bit", fmt::format("layer {}", shape.layer));
  layer.seq_lens = {static_cast<std::int32_t>(shape.tokens)};
  return layer;
}

struct Row {
  int layer;
  std::string shape;
  std::uint64_t bytes;
  double bits;
};

Row to_pages(const Options& options, const LayerPlanes& planes, const CodecSpec& spec, PageFileWriter& writer) {
  const PagedLayer layer = place(options, spec, planes.shape);
  std::vector<std::uint8_t> cache(static_cast<std::size_t>(layer.num_blocks * layer.layout.block_stride), 0);
  const std::vector<std::int64_t> slots = slot_mapping(layer, 0, 0, planes.shape.tokens);
  write_pages(layer.layout, planes.k.in(), planes.v.in(), slots.data(), planes.shape.tokens, cache.data(), layer.num_blocks);
  writer.write(layer, cache.data());
  const double values = 2.0 * planes.shape.num_kv_heads * static_cast<double>(planes.shape.tokens) * planes.shape.head_dim;
  return {planes.shape.layer, fmt::format("{} x {} x {}", planes.shape.num_kv_heads, planes.shape.tokens, planes.shape.head_dim),
          cache.size(), values == 0 ? 0 : 8.0 * static_cast<double>(cache.size()) / values};
}

void run(const Options& options) {
  check_outputs(options.output_options);
  if (options.output == "-") throw Error(ErrorCode::Usage, "page caches are HDF5, which needs to seek; name a file", "-o -");
  if (options.output.empty()) throw Error(ErrorCode::Usage, "say where to write (-o pages.h5, or -o back.tq4)");
  const SpooledInput input(options.input);
  check_output_path(options.input, options.output, options.output_options.force);

  std::optional<PageHint> hint;
  if (options.from_layout) {
    if (options.codec.empty() || options.head_dim == 0)
      throw Error(ErrorCode::Usage, "needs --codec and --head-dim too (and --kv-heads for turboquant-vllm)", "--from-layout");
    hint = PageHint{*options.from_layout, spec_from_name(options.codec), options.num_kv_heads, options.head_dim,
                    options.heads_outer && !options.layout};
  }
  std::unique_ptr<Calibration> calibration;
  if (!options.calibration.empty()) calibration = std::make_unique<Calibration>(read_calibration(options.calibration));
  const std::unique_ptr<PlaneSource> source =
      open_plane_source(input.path(), hint, static_cast<std::size_t>(options.sequence), options.selection, calibration.get());

  CodecSpec spec = source->spec();
  const bool pages = options.layout.has_value();
  if (pages) {
    spec = spec_for_layout(spec, *options.layout);
    if (spec.k.scale_dtype != source->spec().k.scale_dtype || spec.v.scale_dtype != source->spec().v.scale_dtype)
      note(options.output_options, fmt::format("scales change width: layout {} stores them in {}", layout_name(*options.layout),
                                               spec.k.scale_dtype == ScaleDType::F16 ? "fp16 (rounded)" : "fp32"));
    if (source->calibration() != nullptr)
      note(options.output_options, "the codes are calibrated: pages are decoded with the same .tq4cal file");
  }
  std::vector<Row> rows;
  {
    Progress progress("convert", source->layers().size(), Progress::Unit::Items, options.output_options.quiet);
    if (pages) {
      const std::unique_ptr<PageFileWriter> writer =
          create_page_file(options.output, page_attributes(*source), options.output_options.force);
      for (std::size_t i = 0; i < source->layers().size(); ++i) {
        LayerPlanes planes = source->read(i);
        round_scales(planes, source->spec(), spec);
        rows.push_back(to_pages(options, planes, spec, *writer));
        progress.add(1);
      }
      writer->commit();
    } else {
      write_container(*source, options.output, options.output_options.force, [&] { progress.add(1); });
      const std::unique_ptr<Container> back = open_container(options.output);
      for (const StoredLayer& layer : back->info().layers) {
        const LayerInfo& shape = layer.shape;
        const double values = 2.0 * shape.num_kv_heads * static_cast<double>(shape.tokens) * shape.head_dim;
        rows.push_back({shape.layer, fmt::format("{} x {} x {}", shape.num_kv_heads, shape.tokens, shape.head_dim),
                        layer.k_bytes + layer.v_bytes,
                        values == 0 ? 0 : 8.0 * static_cast<double>(layer.k_bytes + layer.v_bytes) / values});
      }
    }
  }

  Table table({{"layer"}, {"shape", "heads x tokens x dim"}, {"bytes"}, {"bits_per_value", "bits/value"}});
  nlohmann::json result = result_envelope("convert");
  result["input"] = options.input;
  result["output"] = options.output;
  result["codec"] = spec_name(spec);
  result["layout"] = pages ? nlohmann::json(layout_name(*options.layout)) : nlohmann::json();
  result["layers"] = nlohmann::json::array();
  for (const Row& row : rows) {
    table.add({row.layer, row.shape, Cell::bytes(row.bytes), Cell::fixed(row.bits, 3)});
    result["layers"].push_back({{"layer", row.layer}, {"bytes", row.bytes}, {"bits_per_value", row.bits}});
  }
  const std::string what = pages ? fmt::format("pages of {} tokens, layout {}{}", options.block_size, layout_name(*options.layout),
                                               options.padded ? " (padded)" : "")
                                 : "container";
  emit(options.output_options, result, table,
       fmt::format("{} -> {}: {}, {}\n\n{}", options.input, options.output, spec_name(spec), what, table.text()));
}

}  // namespace

Action add_convert(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Convert a container to page caches of an inference engine, or back, without decoding",
           {{"tq4 convert dump.tq4 --layout native -o pages.h5", "pages as tq4's decode kernel reads them"},
            {"tq4 convert pages.h5 -o back.tq4", "a container again, byte for byte the same codes"}});
  app.add_option("INPUT", options->input, "Container (.tq4; - = stdin) or page caches (HDF5)").required();
  app.add_option("-o,--output", options->output, "Page caches (with --layout) or container to write").type_name("PATH").group("Output");
  add_parsed(app, "--layout", options->layout, parse_layout, "LAYOUT", "",
             "Write pages: native, turboquant-vllm or vllm (default: a container)")
      .group("Pages");
  app.add_flag("--padded", options->padded, "turboquant-vllm: rows padded to a power of two a head, as its vLLM plugin does")
      .group("Pages");
  app.add_flag("--heads-outer", options->heads_outer, "vllm: [pages, heads, tokens, slot], as newer versions do").group("Pages");
  add_parsed(app, "--block-size", options->block_size, parse_count, "TOKENS", "16", "Tokens a page").group("Pages");
  add_parsed(app, "--block-table", options->block_table, parse_table, "LIST", "",
             "Page of each block of the sequence, e.g. 4,0,2 (default: 0,1,2,...)")
      .group("Pages");
  add_parsed(app, "--num-blocks", options->num_blocks, parse_size, "N", "", "Pages in the cache (default: as many as needed)")
      .group("Pages");
  add_parsed(app, "--sequence", options->sequence, parse_count, "N", "0", "Which sequence of page caches to read").group("Pages");
  add_parsed(app, "--from-layout", options->from_layout, parse_layout, "LAYOUT", "", "Layout of pages that do not describe themselves")
      .group("Foreign pages");
  app.add_option("--codec", options->codec, "Their codec, e.g. turboquant-vllm, vllm:4bit_nc").type_name("NAME").group("Foreign pages");
  add_parsed(app, "--head-dim", options->head_dim, parse_count, "D", "", "Their head_dim").group("Foreign pages");
  add_parsed(app, "--kv-heads", options->num_kv_heads, parse_count, "N", "", "Their number of key/value heads (turboquant-vllm)")
      .group("Foreign pages");
  app.add_option("--calibration", options->calibration, "The .tq4cal file that calibrated pages were encoded with")
      .type_name("PATH")
      .group("Foreign pages");
  add_parsed(app, "--layers", options->selection.layers, parse_indices, "LIST", "", "Layers by number, e.g. 0..3,30 (default: all)")
      .group("Selection");
  add_output_options(app, options->output_options, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
