// tq4 decompress: a container back to a dump in HDF5, or, with --test, every checksum verified and every vector decoded without writing.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "args.h"
#include "common_args.h"
#include "device_decode.h"
#include "paths.h"
#include "pipeline.h"
#include "progress.h"
#include "report.h"
#include "tq4/container.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string input, output, dtype;
  bool test = false;
  Selection selection;
  ExecOptions exec;
  OutputOptions output_options;
};

struct Job {
  std::size_t layer = 0, written_layer = 0;
  Tensor tensor = Tensor::K;
  int head = 0;
  std::int64_t begin = 0, count = 0;
};
struct Slot {
  std::vector<float> x;
  std::vector<std::uint8_t> raw;
};

constexpr std::int64_t kJobValues = 1 << 19;

/// One dtype for the whole file: the one asked for, else that of the source.
DType output_dtype(const Options& options, const ContainerInfo& info) {
  if (!options.dtype.empty()) {
    DType dtype = DType::U8;
    try {
      dtype = dtype_from_name(options.dtype);
    } catch (const Error&) {  // said below, with what serves here
    }
    if (dtype != DType::F16 && dtype != DType::BF16 && dtype != DType::F32)
      throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of float16, bfloat16, float32", options.dtype), "--dtype");
    return dtype;
  }
  return info.layers.empty() ? DType::F16 : info.layers.front().shape.k_dtype;
}

std::vector<Job> plan_jobs(const ContainerInfo& info, const Selection& selection) {
  std::vector<Job> jobs;
  std::size_t written = 0;
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    const LayerInfo& shape = info.layers[i].shape;
    if (!selection.has_layer(shape.layer)) continue;
    const std::int64_t run = std::max<std::int64_t>(1, kJobValues / std::max(1, shape.head_dim));
    for (const Tensor tensor : {Tensor::K, Tensor::V}) {
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        for (std::int64_t at = 0; at < shape.tokens; at += run)
          jobs.push_back({i, written, tensor, head, at, std::min(run, shape.tokens - at)});
      }
    }
    ++written;
  }
  return jobs;
}

void run(const Options& options) {
  check_outputs(options.output_options);
  if (options.test == !options.output.empty())
    throw Error(ErrorCode::Usage,
                options.test ? "--test writes nothing; leave out -o" : "say where to write (-o back.h5), or --test to check the file only");
  if (options.output == "-") throw Error(ErrorCode::Usage, "HDF5 needs to seek and cannot be written to a pipe; name a file", "-o -");
  const Device device = resolve_device(options.exec.device, false);
  const SpooledInput input(options.input);
  if (!options.test) check_output_path(options.input, options.output, options.output_options.force);

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<Container> container = open_container(input.path());
  const ContainerInfo& info = container->info();
  DumpInfo back = info.dump;
  for (const StoredLayer& layer : info.layers) back.layers.push_back(layer.shape);
  back.path = options.input;
  check_selection(options.selection, back);
  if (options.test) container->verify();

  const std::vector<Job> jobs = plan_jobs(info, options.selection);
  const DType dtype = output_dtype(options, info);
  std::unique_ptr<DumpWriter> writer;
  if (!options.test) {
    back.layers.erase(
        std::remove_if(back.layers.begin(), back.layers.end(), [&](const LayerInfo& l) { return !options.selection.has_layer(l.layer); }),
        back.layers.end());
    back.attributes["decompressed_from"] = spec_name(info.spec);
    writer = create_dump(options.output, back, dtype, options.output_options.force);
  }
  std::optional<DeviceDecoder> decoder;
  if (device.cuda) decoder.emplace(*container, device.index);
  std::uint64_t values = 0;
  for (const Job& job : jobs) values += static_cast<std::uint64_t>(job.count * info.layers[job.layer].shape.head_dim);
  {
    Progress progress("decompress", values * dtype_size(dtype), Progress::Unit::Bytes, options.output_options.quiet);
    run_pipeline<Slot>(
        jobs.size(), options.exec.thread_count(), [](std::size_t, Slot&) {},
        [&](std::size_t i, Slot& slot) {
          const Job& job = jobs[i];
          slot.x.resize(static_cast<std::size_t>(job.count * info.layers[job.layer].shape.head_dim));
          const Side side = job.tensor == Tensor::K ? Side::K : Side::V;
          if (decoder)
            decoder->decode(job.layer, side, job.head, job.begin, job.count, slot.x.data());
          else
            container->decode(job.layer, side, job.head, job.begin, job.count, slot.x.data());
          if (!options.test) {
            slot.raw.resize(slot.x.size() * dtype_size(dtype));
            from_float(slot.x.data(), slot.x.size(), dtype, slot.raw.data());
          }
        },
        [&](std::size_t i, Slot& slot) {
          const Job& job = jobs[i];
          if (!options.test) writer->write(job.written_layer, job.tensor, job.head, job.begin, job.count, slot.raw.data());
          progress.add(slot.x.size() * dtype_size(dtype));
        });
  }
  if (writer != nullptr) writer->commit();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  nlohmann::json result = result_envelope("decompress");
  result["input"] = options.input;
  result["output"] = options.test ? nlohmann::json() : nlohmann::json(options.output);
  result["codec"] = spec_name(info.spec);
  result["layers"] = options.test ? info.layers.size() : back.layers.size();
  result["values"] = values;
  result["dtype"] = dtype_name(dtype);
  result["device"] = device.name();
  result["seconds"] = seconds;
  const std::string text =
      options.test
          ? fmt::format("{}: OK: every checksum holds, {} layers decode ({} in {})\n", options.input, info.layers.size(),
                        format_bytes(double(info.file_bytes)), format_seconds(seconds))
          : fmt::format("{} -> {}: {}, {} layers, {} of {} in {}\n", options.input, options.output, spec_name(info.spec),
                        back.layers.size(), format_bytes(double(values * dtype_size(dtype))), dtype_name(dtype), format_seconds(seconds));
  emit(options.output_options, result, Table({}), text);
}

}  // namespace

Action add_decompress(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Decode a .tq4 container to a dump in HDF5, or test it",
           {{"tq4 decompress dump.tq4 -o back.h5", "the dump back, within the codec's error"},
            {"tq4 decompress dump.tq4 --test", "check every checksum and decode everything; write nothing"}});
  app.add_option("CONTAINER", options->input, "Container (.tq4); - = stdin").required();
  app.add_option("-o,--output", options->output, "Dump to write (HDF5)").type_name("PATH").group("Output");
  app.add_flag("--test", options->test, "Verify every checksum, decode everything, write nothing").group("Output");
  app.add_option("--dtype", options->dtype, "float16, bfloat16 or float32 (default: that of the source)")
      .type_name("DTYPE")
      .group("Output");
  add_parsed(app, "--layers", options->selection.layers, parse_indices, "LIST", "", "Layers by number, e.g. 0..3,30 (default: all)")
      .group("Selection");
  add_threads_option(app, options->exec);
  add_device_option(app, options->exec, "Where to decode: auto (= cpu here), cpu, cuda or cuda:N");
  add_output_options(app, options->output_options);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
