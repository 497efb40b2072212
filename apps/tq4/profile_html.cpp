// See profile_html.h. A picture a group of points that differ in codec and context only: both axes logarithmic, a line a codec, dashed lines
// for the uncompressed baselines.
#include "profile_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <vector>

namespace tq4::cli {
namespace {

constexpr std::string_view kStyle = R"css(
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d2129;--muted:#5c6470;--line:#dcdfe4;--card:#fff;--c0:#1f5fbf;--c1:#0b7d4f;--c2:#8a5a00;--c3:#7a3fb0;--c4:#a8325e;--c5:#4a6a75}
@media (prefers-color-scheme:dark){:root{--bg:#14171c;--fg:#e6e8eb;--muted:#a0a8b4;--line:#343a44;--card:#1b1f26;--c0:#7fb2ff;--c1:#5fd6a0;--c2:#e0b060;--c3:#c79bf0;--c4:#f08fb4;--c5:#9bb8c4}}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}main{max-width:960px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:22px;margin:0 0 4px}h2{font-size:16px;margin:28px 0 8px}p{color:var(--muted);margin:4px 0 12px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;overflow-x:auto}
svg{display:block;width:100%;height:auto}svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .tick{fill:var(--muted)}svg .grid{stroke:var(--line)}
svg polyline{fill:none;stroke-width:2}svg .base{stroke:var(--muted);stroke-width:1.4}svg .fp8{stroke-dasharray:2 4}svg .fp16{stroke-dasharray:7 4}
table{border-collapse:collapse;width:100%;font-size:12.5px;font-variant-numeric:tabular-nums}th,td{padding:3px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
)css";

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string tokens(double n) { return n >= 1024 && std::fmod(n, 1024) == 0 ? fmt::format("{:.0f}k", n / 1024) : fmt::format("{:.0f}", n); }

struct Line {
  std::string name, style;
  std::vector<std::pair<double, double>> points;  ///< ctx, microseconds; ascending
};

/// What a picture's points have in common.
std::string group_of(const nlohmann::json& p) {
  std::string name = fmt::format("heads {}, head_dim {}, batch {}", p.at("heads").get<std::string>(), p.at("head_dim").get<int>(),
                                 p.at("batch").get<int>());
  if (p.at("q_len").get<int>() != 1) name += fmt::format(", q_len {}", p.at("q_len").get<int>());
  return name + fmt::format(", {} pages of {}", p.at("layout").get<std::string>(), p.at("block_size").get<int>());
}

std::vector<Line> lines_of(const std::vector<const nlohmann::json*>& points) {
  std::vector<Line> lines;
  const auto line = [&](const std::string& name, const std::string& style) -> Line& {
    for (Line& l : lines)
      if (l.name == name) return l;
    return lines.emplace_back(Line{name, style, {}});
  };
  int codecs = 0;
  for (const nlohmann::json* p : points) {
    const std::string codec = p->at("codec").get<std::string>();
    const bool known = std::any_of(lines.begin(), lines.end(), [&](const Line& l) { return l.name == codec; });
    const std::string style = fmt::format("style=\"stroke:var(--c{})\"", codecs % 6);
    if (!known) ++codecs;
    line(codec, style).points.emplace_back(p->at("ctx").get<double>(), p->at("seconds").get<double>() * 1e6);
  }
  for (const auto& [key, name] : {std::pair("fp16_seconds", "fp16"), std::pair("fp8_seconds", "fp8")}) {
    std::map<double, double> base;  // the same for every codec: the last measured stands
    for (const nlohmann::json* p : points)
      if (p->contains(key)) base[p->at("ctx").get<double>()] = p->at(key).get<double>() * 1e6;
    if (!base.empty())
      line(std::string("uncompressed ") + name, fmt::format("class=\"base {}\"", name)).points.assign(base.begin(), base.end());
  }
  for (Line& l : lines) std::sort(l.points.begin(), l.points.end());
  return lines;
}

std::string picture(const std::vector<Line>& lines) {
  constexpr double kWidth = 900, kHeight = 380, kLeft = 70, kRight = 150, kTop = 16, kBottom = 44;
  double x0 = INFINITY, x1 = 0, y0 = INFINITY, y1 = 0;
  std::set<double> contexts;
  for (const Line& l : lines) {
    for (const auto& [x, y] : l.points) {
      x0 = std::min(x0, x), x1 = std::max(x1, x), y0 = std::min(y0, y), y1 = std::max(y1, y);
      contexts.insert(x);
    }
  }
  y0 /= 1.2, y1 *= 1.2;
  if (x1 <= x0) x0 /= 2, x1 *= 2;
  const auto px = [&](double x) { return kLeft + (kWidth - kLeft - kRight) * std::log(x / x0) / std::log(x1 / x0); };
  const auto py = [&](double y) { return kHeight - kBottom - (kHeight - kTop - kBottom) * std::log(y / y0) / std::log(y1 / y0); };
  std::string svg = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"time against context length\">", kWidth, kHeight);
  for (const double c : contexts) {
    svg += fmt::format("<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>", px(c), kTop, kHeight - kBottom);
    svg += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", px(c), kHeight - kBottom + 18,
                       tokens(c));
  }
  for (double decade = std::pow(10.0, std::floor(std::log10(y0))); decade <= y1; decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      const double y = decade * step;
      if (y < y0 || y > y1) continue;
      svg += fmt::format("<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>", kLeft, kWidth - kRight, py(y));
      svg += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>", kLeft - 8, py(y) + 4, y);
    }
  }
  svg += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">tokens a sequence holds</text>",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6);
  svg += fmt::format(
      "<text class=\"tick\" x=\"14\" y=\"{}\" transform=\"rotate(-90 14 {})\" text-anchor=\"middle\">microseconds a call</text>",
      kHeight / 2, kHeight / 2);
  // Names at the lines' ends, pushed apart.
  std::vector<std::pair<double, const Line*>> ends;
  for (const Line& l : lines) {
    svg += fmt::format("<polyline {} points=\"", l.style);
    for (const auto& [x, y] : l.points) svg += fmt::format("{:.1f},{:.1f} ", px(x), py(y));
    svg += "\"/>";
    ends.emplace_back(py(l.points.back().second), &l);
  }
  std::sort(ends.begin(), ends.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  double last = -100;
  for (const auto& [y, l] : ends) {
    last = std::max(y + 4, last + 14);
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\">{}</text>", kWidth - kRight + 8, last, escape(l->name));
  }
  return svg + "</svg>";
}

std::string cell(const nlohmann::json& p, const char* key, double factor, const char* format) {
  return p.contains(key) ? fmt::format(fmt::runtime(format), p.at(key).get<double>() * factor) : std::string("-");
}

}  // namespace

std::string profile_page(const nlohmann::json& result) {
  std::vector<std::pair<std::string, std::vector<const nlohmann::json*>>> groups;
  std::string skipped;
  for (const nlohmann::json& p : result.at("points")) {
    const std::string name = group_of(p);
    if (p.contains("skipped")) {
      skipped += fmt::format("<p>skipped: {} {} ctx {}: {}</p>", escape(p.at("codec").get<std::string>()), escape(name),
                             p.at("ctx").get<std::int64_t>(), escape(p.at("skipped").get<std::string>()));
      continue;
    }
    const auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == name; });
    (found == groups.end() ? groups.emplace_back(name, std::vector<const nlohmann::json*>{}) : *found).second.push_back(&p);
  }
  std::string page =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">";
  page += fmt::format("<title>tq4 profile</title><style>{}</style></head><body><main>", kStyle);
  page += fmt::format(
      "<h1>tq4 profile: {}</h1><p>{}, reads {:.0f} GB/s, an empty kernel takes {:.2f} us. Cold caches, one CUDA graph, medians.{}</p>",
      escape(result.at("op").get<std::string>()), escape(result.at("device").get<std::string>()),
      result.at("ceiling_bytes_per_second").get<double>() * 1e-9, result.at("launch_seconds").get<double>() * 1e6,
      result.contains("dump") ? " Data: " + escape(result.at("dump").get<std::string>()) : "");
  for (const auto& [name, points] : groups) {
    page += fmt::format(
        "<h2>{}</h2><div class=\"card\">{}</div><div class=\"card\"><table><tr><th>codec</th><th>ctx</th><th>us</th><th>{}</th><th>fp16 "
        "us</th>"
        "<th>fp8 us</th><th>error</th><th>path</th></tr>",
        escape(name), picture(lines_of(points)), points.front()->contains("flops") ? "TFLOP/s" : "GB/s");
    for (const nlohmann::json* p : points) {
      const double seconds = p->at("seconds").get<double>();
      page +=
          fmt::format("<tr><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.0f}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                      escape(p->at("codec").get<std::string>()), p->at("ctx").get<std::int64_t>(), seconds * 1e6,
                      p->contains("flops") ? p->at("flops").get<double>() / seconds * 1e-12 : p->at("bytes").get<double>() / seconds * 1e-9,
                      cell(*p, "fp16_seconds", 1e6, "{:.1f}"), cell(*p, "fp8_seconds", 1e6, "{:.1f}"),
                      cell(*p, "relative_error", 1, "{:.1e}"), escape(p->at("path").get<std::string>()));
    }
    page += "</table></div>";
  }
  return page + skipped + "</main></body></html>\n";
}

}  // namespace tq4::cli
