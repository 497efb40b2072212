// The page: one file that needs no network and no script. Structure and style here, pictures in report_plots.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "eval/report_plots.h"
#include "tq4/report.h"

namespace tq4 {
namespace {

using eval::escape;
using eval::number;

constexpr std::string_view kStyle = R"css(
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d2129;--muted:#5c6470;--line:#dcdfe4;--card:#ffffff;--own:#1f5fbf;--cal:#0b7d4f;--other:#8a5a00;
--other-dot:#c08a2e;--bound:#b3261e;--theory:#7a7f87;--heat-low:#eaf1fb;--heat-high:#123f86;--heat-text:#1d2129;--heat-text-high:#ffffff;--code:#f0f1f3}
@media (prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e8eb;--muted:#a0a8b4;--line:#343a44;--card:#1b1f26;--own:#7fb2ff;--cal:#5fd6a0;--other:#e0b060;
--other-dot:#c99a45;--bound:#ff8a80;--theory:#9aa1ac;--heat-low:#1f2a3a;--heat-high:#9cc7ff;--heat-text:#e6e8eb;--heat-text-high:#0c1420;--code:#262b33}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1320px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
p{margin:6px 0 12px;max-width:85ch}.muted{color:var(--muted)}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:14px}
.maps{display:flex;flex-wrap:wrap;gap:14px}.maps .card{flex:1 1 280px;max-width:620px}.maps svg{max-width:520px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:12.5px;font-variant-numeric:tabular-nums}
th,td{padding:4px 6px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}th{color:var(--muted);font-weight:600;position:sticky;top:0;background:var(--card)}
td:first-child,th:first-child,td.text,th.text{text-align:left}td.text{white-space:normal}
tr.own td:first-child{color:var(--own);font-weight:600}tr.cal td:first-child{color:var(--cal);font-weight:600}
code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--code);border-radius:5px}code{padding:1px 5px}pre{padding:10px 12px;overflow-x:auto;margin:6px 0}
.note{border-left:4px solid var(--other-dot);padding:6px 12px;margin:6px 0;background:var(--card)}
details{margin:6px 0}summary{cursor:pointer;padding:4px 0}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg text{fill:var(--fg);font-size:12px}svg .title{font-size:14px;font-weight:600}svg .tick{fill:var(--muted);font-size:11px}svg .label{fill:var(--muted)}
svg .grid{stroke:var(--line);stroke-width:1;display:inline}svg .axis{stroke:var(--muted);stroke-width:1}
svg .bound{fill:none;stroke:var(--bound);stroke-width:1.6}svg .theory{fill:none;stroke:var(--theory);stroke-width:1.4;stroke-dasharray:5 4}svg .bound-text{fill:var(--muted);font-size:11px;font-style:italic}
svg circle.own{fill:var(--own)}svg circle.calibrated{fill:var(--cal)}svg circle.other{fill:var(--other-dot)}
svg .point-label,svg .bound-text{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}svg .point-label{font-size:11px}svg .own-text{fill:var(--own);font-weight:600}svg .calibrated-text{fill:var(--cal);font-weight:600}svg .other-text{fill:var(--other)}
svg .dot{fill:var(--own);fill-opacity:.45}svg .diagonal{stroke:var(--bound);stroke-width:1.2}
svg .model{fill:none;stroke:var(--theory);stroke-width:2.4}svg .series-k{fill:none;stroke:var(--own);stroke-width:1.6}svg .series-v{fill:none;stroke:var(--other-dot);stroke-width:1.6}
svg .boundary{stroke:var(--bound);stroke-width:1}svg .cell{fill:var(--heat-text);font-size:11px}svg .cell.high{fill:var(--heat-text-high)}
.key span{display:inline-block;margin-right:16px}.key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px}
)css";

std::string percent(double share) {
  if (std::isnan(share)) return "-";
  char text[16];
  std::snprintf(text, sizeof text, "%.1f%%", 100 * share);
  return text;
}

std::string cell(const std::string& content) { return "<td>" + content + "</td>"; }

/// Columns of every quality table: attention first, it is what users feel.
struct QualityColumn {
  const char* metric;
  const char* reference;  ///< a metric to divide by ("2.8x"), or null
  const char* title;      ///< null = the metric's own
  bool attention;
  bool share;
};
constexpr QualityColumn kColumns[] = {
    {"bits", nullptr, nullptr, false, false},
    {"output_mse", nullptr, nullptr, true, false},
    {"output_error", nullptr, nullptr, true, false},
    {"output_cosine", nullptr, nullptr, true, false},
    {"kl_mean", nullptr, nullptr, true, false},
    {"kl_median", nullptr, nullptr, true, false},
    {"kl_p99", nullptr, nullptr, true, false},
    {"kl_max", nullptr, nullptr, true, false},
    {"top1", nullptr, "top-1", true, true},
    {"top8", nullptr, "top-8", true, true},
    {"logit_rmse_centred", nullptr, "logit rms", true, false},
    {"logit_max", nullptr, nullptr, true, false},
    {"k_mse", nullptr, nullptr, false, false},
    {"k_mse", "k_theory", "/ theory", false, false},
    {"k_mse", "k_bound", "/ bound", false, false},
    {"k_cosine", nullptr, nullptr, false, false},
    {"v_mse", nullptr, nullptr, false, false},
    {"v_mse", "v_theory", "/ theory", false, false},
    {"v_mse", "v_bound", "/ bound", false, false},
    {"v_cosine", nullptr, nullptr, false, false},
};

std::string quality_cells(const Quality& q, bool attention) {
  std::string out;
  for (const QualityColumn& column : kColumns) {
    if (column.attention && !attention) continue;
    const double value = q.*metric_info(column.metric).value;
    if (column.reference != nullptr) {
      const double reference = q.*metric_info(column.reference).value;
      out +=
          "<td class=\"muted\">" + (reference > 0 && !std::isnan(value) ? number(value / reference, 3) + "x" : std::string("-")) + "</td>";
    } else {
      out += cell(column.share
                      ? percent(value)
                      : number(value, std::string_view(column.metric).ends_with("cosine") ? 5 : 3 + (column.metric == kColumns[0].metric)));
    }
  }
  return out;
}

std::string quality_header(const char* first, bool attention) {
  std::string out = "<thead><tr><th>" + std::string(first) + "</th>";
  for (const QualityColumn& column : kColumns) {
    if (column.attention && !attention) continue;
    const MetricInfo& info = metric_info(column.metric);
    const std::string help =
        std::string(info.help) + (column.reference != nullptr ? ", divided by: " + std::string(metric_info(column.reference).help) : "");
    out += "<th title=\"" + escape(help) + "\">" + escape(column.title != nullptr ? column.title : info.title) + "</th>";
  }
  return out + "</tr></thead>";
}

std::string row_class(const CodecReport& codec) { return codec.calibrated ? " class=\"cal\"" : codec.own ? " class=\"own\"" : ""; }

std::string summary_table(const Report& report) {
  std::string out = "<div class=\"card scroll\"><table>" + quality_header("codec", report.has_attention) + "<tbody>";
  for (const CodecReport& codec : report.codecs) {
    out += "<tr" + row_class(codec) + "><td title=\"" + escape(codec.description) + "\">" + escape(codec.name) + "</td>" +
           quality_cells(codec.total, report.has_attention) + "</tr>";
  }
  return out + "</tbody></table></div>";
}

std::string layer_tables(const Report& report) {
  std::string out;
  for (const CodecReport& codec : report.codecs) {
    out += "<details><summary>" + escape(codec.name) + "</summary><div class=\"card scroll\"><table>" +
           quality_header("layer / head", report.has_attention) + "<tbody>";
    for (const LayerQuality& layer : codec.layers) {
      out += "<tr class=\"own\"><td>layer " + std::to_string(layer.layer) + "</td>" + quality_cells(layer.quality, report.has_attention) +
             "</tr>";
      for (const HeadQuality& head : codec.heads) {
        if (head.layer == layer.layer)
          out += "<tr><td>&emsp;head " + std::to_string(head.head) + "</td>" + quality_cells(head.quality, report.has_attention) + "</tr>";
      }
    }
    out += "</tbody></table></div></details>";
  }
  return out;
}

std::string sources_table(const Report& report) {
  std::string out =
      "<div class=\"card scroll\"><table><thead><tr><th>codec</th><th class=\"text\">what is stored</th><th "
      "class=\"text\">source</th></tr></thead><tbody>";
  for (const CodecReport& codec : report.codecs) {
    out += "<tr" + row_class(codec) + "><td>" + escape(codec.name) + "</td><td class=\"text\">" + escape(codec.description) +
           "</td><td class=\"text\">" + escape(codec.source) + "</td></tr>";
  }
  return out + "</tbody></table></div>";
}

std::string uniform_text(const char* program, const UniformChoice& u) {
  std::string out = std::string("<p><b>") + program + "</b>: " + escape(u.codec) + ", " + number(u.bits, 4) + " bits a value";
  if (!u.fp16_layers.empty() && u.codec != "fp16") {
    out += ", layers";
    for (const int layer : u.fp16_layers) out += " " + std::to_string(layer);
    out += " in fp16";
  }
  if (u.codec != "fp16") out += ", worst layer " + number(u.worst_error);
  return out + "</p><pre>" + escape(u.flags) + "</pre>";
}

std::string recommendation_section(const Recommendation& r) {
  std::string out = "<h2>Recommendation</h2><p>The cheapest codecs whose attention output keeps a relative squared error of at most " +
                    number(r.max_error) +
                    " in every layer, measured layer by layer on this dump. Attention error ranks codecs only roughly: confirm with the "
                    "model's own loss.</p><div class=\"grid\"><div class=\"card\">" +
                    uniform_text("tq4, one codec", r.tq4) + uniform_text("vLLM", r.vllm) +
                    "<p class=\"muted\">vLLM's TurboQuant presets may keep the first and last layers in fp16 by themselves.</p></div>";
  out += "<div class=\"card scroll\"><table><thead><tr><th>layer</th><th>codec</th><th>bits</th><th>output error</th></tr></thead><tbody>";
  for (const LayerChoice& c : r.layers) {
    out += "<tr><td>" + std::to_string(c.layer) + "</td><td>" + escape(c.codec) + "</td>" + cell(number(c.bits, 4)) +
           cell(number(c.output_mse)) + "</tr>";
  }
  return out + "<tr><td>mean</td><td></td>" + cell(number(r.bits, 4)) + "<td></td></tr></tbody></table></div></div>";
}

std::string plots(const Report& report) {
  std::string out =
      "<h2>Error against bits</h2><p class=\"key muted\"><span><i style=\"background:var(--own)\"></i>tq4</span><span><i "
      "style=\"background:var(--cal)\"></i>tq4, calibrated</span>"
      "<span><i style=\"background:var(--other-dot)\"></i>others</span>Bits count scales, zeros, centres and exact tokens. Calibrated keys "
      "spend their error where queries do not look: "
      "judge them by output and KL.</p><div class=\"grid\">";
  const int dim = report.dump.layers.front().head_dim;
  const auto card = [&out](const std::string& svg) { out += "<div class=\"card\">" + svg + "</div>"; };
  card(eval::plot_against_bits(report, &Quality::k_bits, &Quality::k_mse, "Keys", dim));
  card(eval::plot_against_bits(report, &Quality::v_bits, &Quality::v_mse, "Values", dim));
  if (report.has_attention) {
    card(eval::plot_against_bits(report, &Quality::bits, &Quality::output_mse, "Attention output", 0));
    card(eval::plot_against_bits(report, &Quality::bits, &Quality::kl_mean, "KL divergence of the softmax, mean", 0));
  }
  const auto own = std::find_if(report.codecs.begin(), report.codecs.end(), [](const CodecReport& c) { return c.own; });
  const CodecReport& mapped = own != report.codecs.end() ? *own : report.codecs.front();
  out += "</div><h2>By layer and head: " + escape(mapped.name) + "</h2><div class=\"maps\">";
  card(eval::plot_heat_map(mapped, &Quality::k_mse, "Error of K"));
  card(eval::plot_heat_map(mapped, &Quality::v_mse, "Error of V"));
  if (report.has_attention) {
    card(eval::plot_heat_map(mapped, &Quality::output_mse, "Error of the attention output"));
    card(eval::plot_heat_map(mapped, &Quality::kl_mean, "Mean KL of the softmax"));
  }
  out += "</div><h2>Inside one codec</h2><div class=\"grid\">";
  card(eval::plot_scatter(report.samples));
  card(eval::plot_histogram(report.samples));
  return out + "</div>";
}

std::string intro(const Report& report) {
  const DumpInfo& dump = report.dump;
  std::int64_t tokens = 0;
  int heads = 0, q_heads = 0;
  for (const LayerInfo& layer : dump.layers) {
    tokens = std::max(tokens, layer.tokens);
    heads = std::max(heads, layer.num_kv_heads);
    q_heads = std::max(q_heads, layer.num_q_heads);
  }
  std::string out =
      "<h1>What quantizing this KV cache costs</h1><p class=\"muted\">" + escape(dump.model.empty() ? "unnamed model" : dump.model) +
      " &middot; " + escape(dump.path.substr(dump.path.find_last_of('/') + 1)) +
      (dump.source.empty() ? "" : " &middot; " + escape(dump.source)) + "<br>" + std::to_string(dump.layers.size()) + " layers, " +
      std::to_string(heads) + " kv heads, " + std::to_string(q_heads) + " query heads, head_dim " +
      std::to_string(dump.layers.front().head_dim) + ", " + std::to_string(tokens) + " tokens, " + (dump.causal ? "causal" : "not causal") +
      ", " + std::to_string(report.queries) + " queries a codec &middot; " + number(report.seconds, 3) + " s</p>";
  for (const std::string& note : report.notes) out += "<div class=\"note\">" + escape(note) + "</div>";
  return out;
}

}  // namespace

std::string to_html(const Report& report, const Recommendation* recommendation, std::string_view producer) {
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">"
      "<title>KV cache quality: " +
      escape(report.dump.model.empty() ? report.dump.path : report.dump.model) + "</title><style>" + std::string(kStyle) +
      "</style></head><body><main>";
  out += intro(report);
  out += "<h2>All layers</h2>" + summary_table(report);
  out +=
      "<p class=\"muted\">Relative errors and bits are means over heads; KL, shares, cosines and logit errors are over all queries. Hover "
      "a column for its meaning.</p>";
  if (recommendation != nullptr) out += recommendation_section(*recommendation);
  out += plots(report);
  out += "<h2>Each layer and head</h2>" + layer_tables(report);
  out += "<h2>Codecs and their sources</h2>" + sources_table(report);
  return out + "<p class=\"muted\">" + escape(producer) + "</p></main></body></html>\n";
}

}  // namespace tq4
