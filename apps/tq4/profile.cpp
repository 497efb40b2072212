// tq4 profile: what an operation costs on this GPU against context length and batch, next to the read bandwidth measured in the same run and
// to our uncompressed fp16 and fp8 decode of the same shape.
#include "tq4/profile.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "args.h"
#include "common_args.h"
#include "profile_data.h"
#include "profile_html.h"
#include "progress.h"
#include "report.h"
#include "tq4/tune.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::vector<std::int64_t> ctx, batch, block_sizes, q_lens;
  std::vector<std::string> heads, layouts;
  int head_dim = 128, samples = 20, rest = 5, layer = -1;
  std::string op = "decode", dtype = "fp16", device = "cuda", dump, calibration, html;
  Option heads_option, head_dim_option;
  CodecOptions codec;
  bool padded = false, ragged = false, calibrated = false, rope = false, general = false, no_rotation = false, no_baselines = false,
       no_overlap = false, no_check = false, dry_run = false, tune = false, no_tuned = false;
  std::uint64_t seed = 1;
  OutputOptions output;
};

gpu::ProfileOp parse_op(const std::string& text) {
  if (text == "decode") return gpu::ProfileOp::Decode;
  if (text == "store") return gpu::ProfileOp::Store;
  if (text == "encode") return gpu::ProfileOp::Encode;
  if (text == "dequant") return gpu::ProfileOp::Dequant;
  if (text == "prefill") return gpu::ProfileOp::Prefill;
  throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of decode, store, encode, dequant, prefill", text), "--op");
}

struct Heads {
  int q = 0, kv = 0;
};
Heads parse_heads(const std::string& text) {
  const std::size_t slash = text.find('/');
  const Heads h{parse_count(text.substr(0, slash)), slash == std::string::npos ? parse_count(text) : parse_count(text.substr(slash + 1))};
  if (h.q < 1 || h.kv < 1 || h.q % h.kv != 0)
    throw Error(ErrorCode::Usage, fmt::format("'{}' must be QUERY/KV with QUERY a multiple of KV", text), "--heads");
  return h;
}

/// One point and how it is named.
struct Point {
  gpu::ProfileShape shape;
  std::string codec, heads;
  bool tuned = false;  ///< shape.splits comes from the cache of winners
};

/// The dump's layer, whose heads and head_dim the points then have.
std::unique_ptr<LayerData> data_of(Options& o) {
  if (o.dump.empty()) {
    if (o.layer >= 0 || !o.calibration.empty())
      throw Error(ErrorCode::Usage, "are of a dump: name it with --dump (made-up calibration: --calibrated)", "--layer and --calibration");
    return nullptr;
  }
  if (o.heads_option.given() || o.head_dim_option.given())
    throw Error(ErrorCode::Usage, "come from the dump; leave them out", "--heads and --head-dim");
  if (o.calibrated || o.rope)
    throw Error(ErrorCode::Usage, "are made up; with --dump, give its own calibration: --calibration FILE.tq4cal",
                "--calibrated and --rope");
  auto data = std::make_unique<LayerData>();
  load_layer_data(o.dump, o.layer, o.calibration, *data);
  const int q_heads = data->layer.q_tokens > 0 ? data->layer.num_q_heads : data->layer.num_kv_heads;
  o.heads = {fmt::format("{}/{}", q_heads, data->layer.num_kv_heads)};
  o.head_dim = data->layer.head_dim;
  return data;
}

void check_sizes(const std::vector<std::int64_t>& sizes, const char* option) {
  for (const std::int64_t n : sizes) {
    if (n < 1 || n > std::numeric_limits<std::int32_t>::max())
      throw Error(ErrorCode::Usage, fmt::format("{} is not possible: 1 to 2^31 - 1 are", n), option);
  }
}

std::vector<Point> points_of(const Options& o) {
  std::vector<Point> points;
  check_sizes(o.ctx, "--ctx");
  check_sizes(o.batch, "--batch");
  check_sizes(o.block_sizes, "--block-size");
  check_sizes(o.q_lens, "--q-len");
  if (parse_op(o.op) == gpu::ProfileOp::Prefill && o.q_lens != std::vector<std::int64_t>{1})
    throw Error(ErrorCode::Usage, "prefill takes as many queries as --ctx says; leave it out", "--q-len");
  for (const NamedSpec& named : codec_specs(o.codec)) {
    for (const std::string& layout : o.layouts) {
      for (const std::string& heads : o.heads) {
        for (const std::int64_t block : o.block_sizes) {
          for (const std::int64_t q_len : o.q_lens) {
            for (const std::int64_t batch : o.batch) {
              for (const std::int64_t ctx : o.ctx) {
                Point p;
                const Heads h = parse_heads(heads);
                p.codec = named.name;
                p.heads = heads;
                p.shape.op = parse_op(o.op);
                p.shape.spec = named.spec;
                p.shape.layout = layout_from_name(layout);
                p.shape.padded = o.padded;
                p.shape.num_q_heads = h.q;
                p.shape.num_kv_heads = h.kv;
                p.shape.head_dim = o.head_dim;
                p.shape.block_size = static_cast<int>(block);
                p.shape.q_len = static_cast<int>(q_len);
                p.shape.batch = static_cast<int>(batch);
                p.shape.ctx = ctx;
                p.shape.ragged = o.ragged;
                p.shape.dtype = dtype_from_name(o.dtype);
                p.shape.calibrated = o.calibrated;
                p.shape.rope = o.rope;
                p.shape.general_path = o.general;
                p.shape.rotate = !o.no_rotation;
                points.push_back(p);
              }
            }
          }
        }
      }
    }
  }
  return points;
}

nlohmann::json timing_json(const gpu::Timing& t) {
  return {{"median", t.median}, {"p10", t.low}, {"p90", t.high}, {"calls", t.calls}, {"samples", t.samples}};
}

nlohmann::json point_json(const Point& p, const gpu::ProfileResult& r) {
  nlohmann::json j{{"codec", p.codec},
                   {"spec", nlohmann::json::parse(spec_to_json(p.shape.spec))},
                   {"layout", std::string(layout_name(p.shape.layout)) + (p.shape.padded ? " padded" : "")},
                   {"heads", p.heads},
                   {"head_dim", p.shape.head_dim},
                   {"block_size", p.shape.block_size},
                   {"q_len", p.shape.q_len},
                   {"batch", p.shape.batch},
                   {"ctx", p.shape.ctx},
                   {"ragged", p.shape.ragged},
                   {"dtype", std::string(dtype_name(p.shape.dtype))},
                   {"calibrated", p.shape.calibrated},
                   {"rope", p.shape.rope},
                   {"rotation_in_call", p.shape.rotate},
                   {"splits", p.shape.splits},
                   {"tuned", p.tuned}};
  if (!r.skipped.empty()) {
    j["skipped"] = r.skipped;
    return j;
  }
  j["path"] = r.path;
  j["caches"] = r.caches;
  j["bytes"] = r.bytes;
  if (r.flops > 0) j["flops"] = r.flops;
  j["seconds"] = r.time.median;
  j["timing"] = timing_json(r.time);
  if (r.fp16.median > 0) j["fp16_seconds"] = r.fp16.median, j["fp16_timing"] = timing_json(r.fp16);
  if (r.fp8.median > 0) j["fp8_seconds"] = r.fp8.median, j["fp8_timing"] = timing_json(r.fp8);
  if (r.relative_error >= 0) j["relative_error"] = r.relative_error;
  return j;
}

/// What bounds an operation decides what is shown: bytes a second next to the ceiling, or arithmetic; baselines are decode's.
std::vector<Column> columns_of(gpu::ProfileOp op) {
  std::vector<Column> columns{
      {"codec", "codec", true}, {"layout", "layout", true}, {"heads", "heads", true}, {"q_len", "q"}, {"batch"}, {"ctx"},
      {"time_us", "us"},        {"p10_us", "p10"},          {"p90_us", "p90"}};
  const auto add = [&](std::initializer_list<Column> more) { columns.insert(columns.end(), more); };
  if (op == gpu::ProfileOp::Prefill) {
    add({{"tflop_per_s", "TFLOP/s"}});
  } else {
    add({{"bytes", op == gpu::ProfileOp::Decode ? "read" : "moved"}, {"gb_per_s", "GB/s"}, {"percent_of_ceiling", "%"}});
  }
  if (op == gpu::ProfileOp::Decode) add({{"fp16_us", "fp16 us"}, {"fp16_ratio", "x"}, {"fp8_us", "fp8 us"}, {"fp8_ratio", "x"}});
  add({{"relative_error", "error"}, {"path", "path", true}});
  return columns;
}

std::vector<Cell> cells_of(const Point& p, const gpu::ProfileResult& r, double ceiling) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  const double t = r.time.median, rate = r.bytes / t;
  std::vector<Cell> cells{p.codec,
                          std::string(layout_name(p.shape.layout)),
                          p.heads,
                          p.shape.q_len,
                          p.shape.batch,
                          p.shape.ctx,
                          Cell::fixed(t * 1e6, 1),
                          Cell::fixed(r.time.low * 1e6, 1),
                          Cell::fixed(r.time.high * 1e6, 1)};
  const auto add = [&](std::initializer_list<Cell> more) { cells.insert(cells.end(), more); };
  if (p.shape.op == gpu::ProfileOp::Prefill) {
    add({Cell::fixed(r.flops / t * 1e-12, 0)});
  } else {
    add({Cell::bytes(static_cast<std::uint64_t>(r.bytes)), Cell::fixed(rate * 1e-9, 0), Cell::fixed(100 * rate / ceiling, 1)});
  }
  if (p.shape.op == gpu::ProfileOp::Decode) {
    for (const gpu::Timing* base : {&r.fp16, &r.fp8}) {
      const bool run = base->median > 0;
      add({Cell::fixed(run ? base->median * 1e6 : kNone, 1), Cell::fixed(run ? base->median / t : kNone, 2)});
    }
  }
  add({Cell::number(r.relative_error >= 0 ? r.relative_error : kNone, 2),
       p.tuned && r.path == "general" ? fmt::format("{} (tuned: {} splits)", r.path, p.shape.splits) : r.path});
  return cells;
}

void dry_run(const Options& o, const std::vector<Point>& points, const gpu::ProfileOptions& options) {
  gpu::DeviceInfo device;
  device.l2_bytes = std::size_t{50} << 20;
  if (gpu::device_count() > 0) device = gpu::device_info(0);
  Table table({{"codec", "codec", true}, {"layout", "layout", true}, {"heads", "heads", true}, {"batch"}, {"ctx"}, {"caches"}, {"memory"}});
  nlohmann::json plan = nlohmann::json::array();
  for (const Point& p : points) {
    const gpu::ProfilePlan need = gpu::profile_plan(p.shape, options, device);
    table.add(
        {p.codec, std::string(layout_name(p.shape.layout)), p.heads, p.shape.batch, p.shape.ctx, need.caches, Cell::bytes(need.bytes)});
    plan.push_back({{"codec", p.codec},
                    {"heads", p.heads},
                    {"batch", p.shape.batch},
                    {"ctx", p.shape.ctx},
                    {"caches", need.caches},
                    {"memory_bytes", need.bytes}});
  }
  nlohmann::json result = result_envelope("profile");
  result["plan"] = std::move(plan);
  emit(o.output, result, table, table.text());
}

/// Every candidate of every point timed; the winners printed and kept.
void run_tune(const Options& o, const std::vector<Point>& points, const gpu::ProfileOptions& options, const gpu::DeviceInfo& device) {
  const std::string path = gpu::TuneCache::default_path();
  if (path.empty()) throw Error(ErrorCode::Usage, "needs a place for its cache: set XDG_CACHE_HOME or HOME", "--tune");
  gpu::TuneCache cache = gpu::TuneCache::load(path);
  Table table({{"codec", "codec", true},
               {"layout", "layout", true},
               {"heads", "heads", true},
               {"q_len", "q"},
               {"batch"},
               {"ctx"},
               {"path", "path", true},
               {"splits", "best splits"},
               {"best_us", "us"},
               {"rule_us", "rule us"},
               {"gain", "x"}});
  nlohmann::json list = nlohmann::json::array();
  std::string notes;
  bool found = false;
  {
    Progress progress("tune", points.size(), Progress::Unit::Items, o.output.quiet);
    for (const Point& p : points) {
      const gpu::TuneResult r = gpu::tune(p.shape, options);
      progress.add(1);
      if (!r.skipped.empty()) {
        notes += fmt::format("skipped: {} batch {} ctx {}: {}\n", p.codec, p.shape.batch, p.shape.ctx, r.skipped);
        continue;
      }
      if (r.tried.empty()) {
        notes += fmt::format("nothing to choose: {} batch {} ctx {} takes the path {}\n", p.codec, p.shape.batch, p.shape.ctx, r.path);
        continue;
      }
      cache.put(device, p.shape, r.best);
      found = true;
      nlohmann::json tried = nlohmann::json::array();
      for (const auto& [choice, seconds] : r.tried) tried.push_back({{"splits", choice.splits}, {"seconds", seconds}});
      list.push_back({{"key", gpu::tune_shape_key(p.shape)},
                      {"path", r.path},
                      {"best", {{"splits", r.best.splits}}},
                      {"best_seconds", r.best_seconds},
                      {"rule_seconds", r.rule_seconds},
                      {"tried", std::move(tried)}});
      table.add({p.codec, std::string(layout_name(p.shape.layout)), p.heads, p.shape.q_len, p.shape.batch, p.shape.ctx, r.path,
                 r.best.splits == 0 ? Cell("rule") : Cell(fmt::format("{}", r.best.splits)), Cell::fixed(r.best_seconds * 1e6, 1),
                 Cell::fixed(r.rule_seconds * 1e6, 1), Cell::fixed(r.rule_seconds / r.best_seconds, 2)});
    }
  }
  if (found) cache.save(path);
  nlohmann::json result = result_envelope("profile");
  result["device"] = gpu::tune_device_key(device);
  result["cache"] = path;
  result["tuned"] = std::move(list);
  const std::string head = found ? fmt::format("{}: winners are in {}\n", gpu::tune_device_key(device), path) : std::string();
  emit(o.output, result, table, head + (found ? table.text() : "") + notes);
}

void run(Options o) {
  check_outputs(o.output);
  if (!o.html.empty() && o.html != "-" && !o.output.force && ::access(o.html.c_str(), F_OK) == 0)
    throw Error(ErrorCode::Usage, "exists already; --force replaces it", o.html);
  if (o.html == "-" && (o.output.json == "-" || o.output.csv == "-"))
    throw Error(ErrorCode::Usage, "asks for standard output, and so does --json or --csv", "--html -");
  if (!o.html.empty() && o.tune) throw Error(ErrorCode::Usage, "--tune has no picture; leave out --html", "--html");
  const std::unique_ptr<LayerData> data = data_of(o);
  std::vector<Point> points = points_of(o);
  gpu::ProfileOptions options;
  options.samples = o.samples;
  options.rest_seconds = o.rest * 1e-3;
  options.baselines = !o.no_baselines;
  options.overlap = !o.no_overlap;
  options.check = !o.no_check;
  options.seed = o.seed;
  if (data != nullptr) options.data = &data->data;
  if (o.dry_run) {
    dry_run(o, points, options);
    return;
  }
  const Device device = resolve_device(o.device, true, false);
  if (!device.cuda) throw Error(ErrorCode::Usage, "profile times the GPU operations: --device cuda", "--device");
  const gpu::DeviceInfo info = gpu::device_info(device.index);
  if (o.tune) {
    run_tune(o, points, options, info);
    return;
  }
  if (!o.no_tuned) {
    const gpu::TuneCache winners = gpu::TuneCache::load(gpu::TuneCache::default_path());
    for (Point& p : points) {
      if (const auto choice = winners.find(info, p.shape)) p.shape.splits = choice->splits, p.tuned = choice->splits != 0;
    }
  }
  const double ceiling = gpu::read_bandwidth(), launch = gpu::launch_seconds();
  Table table(columns_of(points.front().shape.op));
  nlohmann::json list = nlohmann::json::array();
  std::string skipped;
  {
    Progress progress("profile", points.size(), Progress::Unit::Items, o.output.quiet);
    for (const Point& p : points) {
      const gpu::ProfileResult r = gpu::profile(p.shape, options);
      list.push_back(point_json(p, r));
      progress.add(1);
      if (!r.skipped.empty()) {
        skipped += fmt::format("skipped: {} batch {} ctx {}: {}\n", p.codec, p.shape.batch, p.shape.ctx, r.skipped);
        continue;
      }
      table.add(cells_of(p, r, ceiling));
    }
  }
  nlohmann::json result = result_envelope("profile");
  result["device"] = info.name;
  result["op"] = o.op;
  if (data != nullptr) result["dump"] = fmt::format("{}, layer {}", o.dump, data->layer.layer);
  result["rest_seconds"] = options.rest_seconds;
  result["ceiling_bytes_per_second"] = ceiling;
  result["launch_seconds"] = launch;
  result["points"] = std::move(list);
  const std::string head =
      fmt::format("{}: reads {:.0f} GB/s, an empty kernel takes {:.2f} us; cold caches, one CUDA graph, median of {}, {} ms apart\n",
                  info.name, ceiling * 1e-9, launch * 1e6, o.samples, o.rest);
  if (!o.html.empty()) write_text_file(o.html, profile_page(result), o.output.force);
  emit(o.output, result, table, o.html == "-" ? "" : head + table.text() + skipped);
}

}  // namespace

Action add_profile(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Time the GPU operations against context length, next to fp16 and the read bandwidth",
           {{"tq4 profile --ctx 1k..32k", "the paged decode of tq4, batch 1"},
            {"tq4 profile --codec tq4,k4v3 --batch 1,8,32 --ctx 8k,32k --json -", "a sweep as JSON"},
            {"tq4 profile --op store --batch 32", "one step's tokens into the pages"},
            {"tq4 profile --dump dump.h5 --html profile.html", "real keys, values and queries; a page with a picture"},
            {"tq4 profile --general --tune --ctx 8k", "try the launch choices, keep the winner for this GPU"}});
  constexpr const char* kShape = "Shape";
  add_parsed(app, "--ctx", options->ctx, parse_sizes, "SIZES", "1k..32k", "Tokens a sequence holds").group(kShape);
  add_parsed(app, "--batch", options->batch, parse_sizes, "SIZES", "1", "Sequences").group(kShape);
  options->heads_option =
      add_parsed(app, "--heads", options->heads, parse_names, "Q/KV", "32/8", "Query and kv heads; with --dump, its own").group(kShape);
  options->head_dim_option =
      add_parsed(app, "--head-dim", options->head_dim, parse_count, "D", "128", "Size of a head; with --dump, its own").group(kShape);
  add_parsed(app, "--layout", options->layouts, parse_names, "NAMES", "native", "native, turboquant-vllm, vllm").group(kShape);
  add_parsed(app, "--block-size", options->block_sizes, parse_sizes, "SIZES", "16", "Tokens a page").group(kShape);
  add_parsed(app, "--q-len", options->q_lens, parse_sizes, "SIZES", "1", "Query tokens a sequence").group(kShape);
  app.add_option("--dtype", options->dtype, "Type of queries and output: fp16, bf16").capture_default_str().group(kShape);
  app.add_flag("--padded", options->padded, "turboquant-vllm's rows padded to a power of two a head").group(kShape);
  app.add_flag("--ragged", options->ragged, "Lengths log-uniform from 100 to --ctx").group(kShape);
  app.add_flag("--calibrated", options->calibrated, "Per-head matrices and centres").group(kShape);
  app.add_flag("--rope", options->rope, "Keys centred before RoPE").group(kShape);
  constexpr const char* kRun = "Run";
  app.add_option("--op", options->op, "decode, store, encode, dequant or prefill (--ctx queries over as many compressed tokens)")
      .capture_default_str()
      .group(kRun);
  add_parsed(app, "--samples", options->samples, parse_count, "N", "20", "Timed launches of a graph a point, some 3 ms each").group(kRun);
  const auto milliseconds = [](const std::string& text) {
    const int value = parse_count(text);
    if (value > 10000) throw Error(ErrorCode::Usage, fmt::format("'{}' is more than 10000", text));
    return value;
  };
  add_parsed(app, "--rest", options->rest, milliseconds, "MS", "5",
             "Pause before each of them, or the clock may fall at the power limit; 0: back to back")
      .group(kRun);
  app.add_flag("--general", options->general, "Do not take the fused kernel").group(kRun);
  app.add_flag("--no-rotation", options->no_rotation, "Query and output stay in rotated space").group(kRun);
  app.add_flag("--no-overlap", options->no_overlap,
               "Decode: every call reads nothing before the one ahead has ended (else it starts early, as behind the store of a layer)")
      .group(kRun);
  app.add_flag("--no-baselines", options->no_baselines, "Skip the fp16 and fp8 decode").group(kRun);
  app.add_flag("--no-check", options->no_check, "Skip the comparison with the CPU reference").group(kRun);
  app.add_flag(
         "--tune", options->tune,
         "Time the launch choices there are and keep the winners of this GPU and driver in $XDG_CACHE_HOME/tq4/tune.tsv for later calls. "
         "Only decode's general path has one: into how many parts the context is cut")
      .group(kRun);
  app.add_flag("--no-tuned", options->no_tuned, "Do not use the winners that --tune found").group(kRun);
  app.add_flag("--dry-run", options->dry_run, "Print the plan and the memory it needs, run nothing").group(kRun);
  app.add_option("--device", options->device, "cuda or cuda:N").capture_default_str().group(kRun);
  constexpr const char* kData = "Data";
  app.add_option("--dump", options->dump,
                 "Keys, values and queries of a layer of this dump, repeated up to --ctx (default: random numbers)")
      .type_name("FILE")
      .group(kData);
  add_parsed(app, "--layer", options->layer, parse_count, "N", "", "Which layer of the dump (default: the middle one)").group(kData);
  app.add_option("--calibration", options->calibration, "Its calibration (tq4 calibrate), for this layer's matrices, centres and tables")
      .type_name("FILE")
      .group(kData);
  add_codec_options(app, options->codec);
  add_output_options(app, options->output, true);
  app.add_option("--html", options->html, "Write a self-contained page with a picture; - = stdout").type_name("PATH").group("Output");
  return [options] { run(*options); };
}

}  // namespace tq4::cli
