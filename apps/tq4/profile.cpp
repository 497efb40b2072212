// tq4 profile: what an operation costs on this GPU against context length and batch, next to the read bandwidth measured in the same run and
// to our uncompressed fp16 and fp8 decode of the same shape.
#include "tq4/profile.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "args.h"
#include "common_args.h"
#include "progress.h"
#include "report.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::vector<std::int64_t> ctx, batch, block_sizes, q_lens;
  std::vector<std::string> heads, layouts;
  int head_dim = 128, samples = 30;
  std::string op = "decode", dtype = "fp16", device = "cuda";
  CodecOptions codec;
  bool padded = false, ragged = false, calibrated = false, rope = false, general = false, no_rotation = false, no_baselines = false,
       no_check = false, dry_run = false;
  std::uint64_t seed = 1;
  OutputOptions output;
};

gpu::ProfileOp parse_op(const std::string& text) {
  if (text == "decode") return gpu::ProfileOp::Decode;
  if (text == "store") return gpu::ProfileOp::Store;
  if (text == "encode") return gpu::ProfileOp::Encode;
  if (text == "dequant") return gpu::ProfileOp::Dequant;
  throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of decode, store, encode, dequant", text), "--op");
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
};

std::vector<Point> points_of(const Options& o) {
  std::vector<Point> points;
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

nlohmann::json timing_json(const gpu::Timing& t) { return {{"median", t.median}, {"p10", t.low}, {"p90", t.high}, {"samples", t.samples}}; }

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
                   {"rotation_in_call", p.shape.rotate}};
  if (!r.skipped.empty()) {
    j["skipped"] = r.skipped;
    return j;
  }
  j["path"] = r.path;
  j["caches"] = r.caches;
  j["bytes"] = r.bytes;
  j["seconds"] = r.time.median;
  j["timing"] = timing_json(r.time);
  if (r.fp16.median > 0) j["fp16_seconds"] = r.fp16.median, j["fp16_timing"] = timing_json(r.fp16);
  if (r.fp8.median > 0) j["fp8_seconds"] = r.fp8.median, j["fp8_timing"] = timing_json(r.fp8);
  if (r.relative_error >= 0) j["relative_error"] = r.relative_error;
  return j;
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

void run(const Options& o) {
  check_outputs(o.output);
  const std::vector<Point> points = points_of(o);
  gpu::ProfileOptions options;
  options.samples = o.samples;
  options.baselines = !o.no_baselines;
  options.check = !o.no_check;
  options.seed = o.seed;
  if (o.dry_run) {
    dry_run(o, points, options);
    return;
  }
  const Device device = resolve_device(o.device, true, false);
  if (!device.cuda) throw Error(ErrorCode::Usage, "profile times the GPU operations: --device cuda", "--device");
  const gpu::DeviceInfo info = gpu::device_info(device.index);
  const double ceiling = gpu::read_bandwidth(), launch = gpu::launch_seconds();
  Table table({{"codec", "codec", true},
               {"layout", "layout", true},
               {"heads", "heads", true},
               {"q_len", "q"},
               {"batch"},
               {"ctx"},
               {"time_us", "us"},
               {"p10_us", "p10"},
               {"p90_us", "p90"},
               {"bytes", "read"},
               {"gb_per_s", "GB/s"},
               {"percent_of_ceiling", "%"},
               {"fp16_us", "fp16 us"},
               {"fp16_ratio", "x"},
               {"fp8_us", "fp8 us"},
               {"fp8_ratio", "x"},
               {"relative_error", "error"},
               {"path", "path", true}});
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
      constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
      const double t = r.time.median, rate = r.bytes / t;
      const auto ratio = [&](const gpu::Timing& base) { return base.median > 0 ? base.median / t : kNone; };
      const auto micro = [&](const gpu::Timing& base) { return base.median > 0 ? base.median * 1e6 : kNone; };
      table.add({p.codec, std::string(layout_name(p.shape.layout)), p.heads, p.shape.q_len, p.shape.batch, p.shape.ctx,
                 Cell::fixed(t * 1e6, 1), Cell::fixed(r.time.low * 1e6, 1), Cell::fixed(r.time.high * 1e6, 1),
                 Cell::bytes(static_cast<std::uint64_t>(r.bytes)), Cell::fixed(rate * 1e-9, 0), Cell::fixed(100 * rate / ceiling, 1),
                 Cell::fixed(micro(r.fp16), 1), Cell::fixed(ratio(r.fp16), 2), Cell::fixed(micro(r.fp8), 1), Cell::fixed(ratio(r.fp8), 2),
                 Cell::number(r.relative_error >= 0 ? r.relative_error : kNone, 2), r.path});
    }
  }
  nlohmann::json result = result_envelope("profile");
  result["device"] = info.name;
  result["op"] = o.op;
  result["ceiling_bytes_per_second"] = ceiling;
  result["launch_seconds"] = launch;
  result["points"] = std::move(list);
  const std::string head =
      fmt::format("{}: reads {:.0f} GB/s, an empty kernel takes {:.2f} us; cold caches, one CUDA graph, median of {}\n", info.name,
                  ceiling * 1e-9, launch * 1e6, o.samples);
  emit(o.output, result, table, head + table.text() + skipped);
}

}  // namespace

Action add_profile(CLI::App& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Time the GPU operations against context length, next to fp16 and the read bandwidth",
           {{"tq4 profile --ctx 1k..32k", "the paged decode of tq4, batch 1"},
            {"tq4 profile --codec tq4,k4v3 --batch 1,8,32 --ctx 8k,32k --json -", "a sweep as JSON"},
            {"tq4 profile --op store --batch 32", "one step's tokens into the pages"}});
  constexpr const char* kShape = "Shape";
  add_parsed(app, "--ctx", options->ctx, parse_sizes, "SIZES", "1k..32k", "Tokens a sequence holds")->group(kShape);
  add_parsed(app, "--batch", options->batch, parse_sizes, "SIZES", "1", "Sequences")->group(kShape);
  add_parsed(app, "--heads", options->heads, parse_names, "Q/KV", "32/8", "Query and kv heads")->group(kShape);
  add_parsed(app, "--head-dim", options->head_dim, parse_count, "D", "128", "Size of a head")->group(kShape);
  add_parsed(app, "--layout", options->layouts, parse_names, "NAMES", "native", "native, turboquant-vllm, vllm")->group(kShape);
  add_parsed(app, "--block-size", options->block_sizes, parse_sizes, "SIZES", "16", "Tokens a page")->group(kShape);
  add_parsed(app, "--q-len", options->q_lens, parse_sizes, "SIZES", "1", "Query tokens a sequence")->group(kShape);
  app.add_option("--dtype", options->dtype, "Type of queries and output: fp16, bf16")->capture_default_str()->group(kShape);
  app.add_flag("--padded", options->padded, "turboquant-vllm's rows padded to a power of two a head")->group(kShape);
  app.add_flag("--ragged", options->ragged, "Lengths log-uniform from 100 to --ctx")->group(kShape);
  app.add_flag("--calibrated", options->calibrated, "Per-head matrices and centres")->group(kShape);
  app.add_flag("--rope", options->rope, "Keys centred before RoPE")->group(kShape);
  constexpr const char* kRun = "Run";
  app.add_option("--op", options->op, "decode, store, encode or dequant")->capture_default_str()->group(kRun);
  add_parsed(app, "--samples", options->samples, parse_count, "N", "30", "Timed launches of a graph a point")->group(kRun);
  app.add_flag("--general", options->general, "Do not take the fused kernel")->group(kRun);
  app.add_flag("--no-rotation", options->no_rotation, "Query and output stay in rotated space")->group(kRun);
  app.add_flag("--no-baselines", options->no_baselines, "Skip the fp16 and fp8 decode")->group(kRun);
  app.add_flag("--no-check", options->no_check, "Skip the comparison with the CPU reference")->group(kRun);
  app.add_flag("--dry-run", options->dry_run, "Print the plan and the memory it needs, run nothing")->group(kRun);
  app.add_option("--device", options->device, "cuda or cuda:N")->capture_default_str()->group(kRun);
  add_codec_options(app, options->codec);
  add_output_options(app, options->output, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
