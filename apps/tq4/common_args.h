// Options that several verbs share, declared once so that they read and behave alike everywhere: which codecs, which layers and heads, how
// many threads and which device, where results go.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tq4/dump.h"
#include "tq4/spec.h"
#include "verb.h"

namespace tq4::cli {

// ---- results --------------------------------------------------------------------------------------------------------------------------

struct OutputOptions {
  std::string json;    ///< path, "-" = stdout, empty = none
  std::string csv;     ///< the same
  bool quiet = false;  ///< no progress, no notes on stderr
  bool force = false;  ///< replace files that exist
};
/// --json, --csv (when `with_csv`), -q/--quiet, and --force, which covers every file a verb writes.
void add_output_options(VerbOptions& app, OutputOptions& options, bool with_csv = false);

// ---- execution ------------------------------------------------------------------------------------------------------------------------

struct Device {
  bool cuda = false;
  int index = 0;
  std::string name() const { return cuda ? "cuda:" + std::to_string(index) : "cpu"; }
};
struct ExecOptions {
  int threads = 0;              ///< 0 = all cores
  std::string device = "auto";  ///< auto, cpu, cuda, cuda:N
  int thread_count() const;     ///< threads, or the number of cores this process may use
};
/// --threads.
void add_threads_option(VerbOptions& app, ExecOptions& options);
/// --device; the description says what is computed there.
void add_device_option(VerbOptions& app, ExecOptions& options, const std::string& description);
/// What the text names. "cuda" without a usable GPU throws NoDevice (exit 5) saying whether the build or the machine lacks it.
/// "auto": cuda where there is one if `prefer_cuda`, else cpu. `cpu_serves`: --device cpu is a way out, and is named in the error.
Device resolve_device(const std::string& text, bool prefer_cuda, bool cpu_serves = true);

// ---- which part of a dump -------------------------------------------------------------------------------------------------------------

struct Selection {
  std::optional<std::vector<int>> layers;  ///< by number; none = all
  std::optional<std::vector<int>> heads;   ///< kv heads; none = all
  DumpOptions dump;                        ///< --axes and --dataset
  bool has_layer(int layer) const;
  bool has_head(int head) const;
};
/// --layers, --dataset, --axes; --heads when `with_heads`.
void add_selection_options(VerbOptions& app, Selection& selection, bool with_heads);
/// Throws Usage naming the layers the dump has when one that was asked for is not there, or when none is left.
void check_selection(const Selection& selection, const DumpInfo& info);

// ---- which codec ----------------------------------------------------------------------------------------------------------------------

struct CodecOptions {
  std::vector<std::string> bits;    ///< --bits 3/4
  std::string k_bits, v_bits;       ///< one each
  std::vector<std::string> codecs;  ///< --codec k4v3,fp8
  std::optional<RotationKind> rotation;
  std::optional<std::uint64_t> seed;
  std::optional<ScaleRule> scale;
  std::optional<int> sinks, window;
};
struct NamedSpec {
  std::string name;  ///< as asked for, or spec_name(spec)
  CodecSpec spec;
};
/// --bits, --k-bits, --v-bits, --codec, --rotation, --seed, --scale, --sinks, --window.
void add_codec_options(VerbOptions& app, CodecOptions& options);
/// Applies --rotation, --seed, --scale, --sinks and --window to a spec (sides that do not rotate keep their rotation).
CodecSpec apply_overrides(CodecSpec spec, const CodecOptions& options);
/// The codecs asked for, in order; `fallback` when none was. Throws Usage on contradictions (--bits with --k-bits, ...).
std::vector<NamedSpec> codec_specs(const CodecOptions& options, const std::string& fallback = "tq4");

RotationKind parse_rotation(std::string_view text);
ScaleRule parse_scale(std::string_view text);

}  // namespace tq4::cli
