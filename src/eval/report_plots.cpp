// SVG drawing: axes, the four kinds of picture, and labels placed where they do not cover each other.
#include "eval/report_plots.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include "tq4/codebook.h"

namespace tq4::eval {
namespace {

constexpr double kWidth = 560, kHeight = 380, kLeft = 64, kRight = 18, kTop = 34, kBottom = 46;

std::string px(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

struct Axis {
  double lo = 0, hi = 1, from = 0, to = 1;
  bool log = false;
  double operator()(double value) const {
    const auto f = [this](double v) { return log ? std::log10(v) : v; };
    return from + (f(value) - f(lo)) / (f(hi) - f(lo)) * (to - from);
  }
};

/// Round steps of 1, 2 or 5 times a power of ten (linear), powers of ten and their halves where few (log).
std::vector<double> ticks(const Axis& axis) {
  std::vector<double> out;
  if (axis.log) {
    const bool fine = std::log10(axis.hi / axis.lo) < 2.5;
    for (int e = static_cast<int>(std::floor(std::log10(axis.lo))); e <= static_cast<int>(std::ceil(std::log10(axis.hi))); ++e) {
      for (const double m : {1.0, 2.0, 5.0}) {
        const double value = m * std::pow(10.0, e);
        if ((m == 1.0 || fine) && value >= axis.lo * 0.999 && value <= axis.hi * 1.001) out.push_back(value);
      }
    }
    return out;
  }
  const double rough = (axis.hi - axis.lo) / 7, power = std::pow(10.0, std::floor(std::log10(rough)));
  const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
  for (double value = std::ceil(axis.lo / step) * step; value <= axis.hi + step * 1e-9; value += step)
    out.push_back(std::fabs(value) < step * 1e-9 ? 0 : value);
  return out;
}

std::string text(double x, double y, std::string_view content, std::string_view classes, std::string_view anchor = "start") {
  return "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\" class=\"" + std::string(classes) + "\" text-anchor=\"" + std::string(anchor) +
         "\">" + escape(content) + "</text>";
}

std::string line(double x1, double y1, double x2, double y2, std::string_view classes) {
  return "<line x1=\"" + px(x1) + "\" y1=\"" + px(y1) + "\" x2=\"" + px(x2) + "\" y2=\"" + px(y2) + "\" class=\"" + std::string(classes) +
         "\"/>";
}

std::string polyline(const std::vector<std::pair<double, double>>& points, std::string_view classes) {
  std::string out = "<polyline class=\"" + std::string(classes) + "\" points=\"";
  for (const auto& [x, y] : points) out += px(x) + "," + px(y) + " ";
  return out + "\"/>";
}

std::string open_svg(double width, double height, std::string_view title) {
  return "<svg viewBox=\"0 0 " + px(width) + " " + px(height) + "\" role=\"img\" aria-label=\"" + escape(title) + "\">" +
         text(8, 18, title, "title");
}

/// Frame, grid, tick labels and axis titles.
std::string frame(const Axis& x, const Axis& y, std::string_view x_title, std::string_view y_title) {
  std::string out;
  for (const double t : ticks(x)) {
    out += line(x(t), y.from, x(t), y.to, "grid") + text(x(t), y.from + 16, number(t, 3), "tick", "middle");
  }
  for (const double t : ticks(y)) {
    out += line(x.from, y(t), x.to, y(t), "grid") + text(x.from - 7, y(t) + 4, number(t, 2), "tick", "end");
  }
  out += line(x.from, y.from, x.to, y.from, "axis") + line(x.from, y.from, x.from, y.to, "axis");
  out += text((x.from + x.to) / 2, y.from + 36, x_title, "label", "middle");
  const double middle = (y.from + y.to) / 2;
  out += "<text transform=\"translate(14 " + px(middle) + ") rotate(-90)\" class=\"label\" text-anchor=\"middle\">" + escape(y_title) +
         "</text>";
  return out;
}

struct Box {
  double x0, y0, x1, y1;
  bool hits(const Box& o) const { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

/// Places a label beside a point where it covers neither labels nor points; false when there is no room.
bool place_label(double x, double y, double width, std::vector<Box>& taken, const Box& area, double& at_x, double& at_y) {
  constexpr double kTall = 12;
  const std::array<std::pair<double, double>, 10> offsets{{{8, 4},
                                                           {-8 - width, 4},
                                                           {-width / 2, -8},
                                                           {-width / 2, 17},
                                                           {8, -6},
                                                           {8, 14},
                                                           {-8 - width, -6},
                                                           {-8 - width, 14},
                                                           {8, -16},
                                                           {8, 24}}};
  for (const auto& [dx, dy] : offsets) {
    const Box box{x + dx, y + dy - kTall + 3, x + dx + width, y + dy + 3};
    if (box.x0 < area.x0 || box.x1 > area.x1 || box.y0 < area.y0 || box.y1 > area.y1) continue;
    if (std::any_of(taken.begin(), taken.end(), [&](const Box& other) { return box.hits(other); })) continue;
    taken.push_back(box);
    at_x = x + dx;
    at_y = y + dy;
    return true;
  }
  return false;
}

std::string_view point_class(const CodecReport& codec) { return codec.calibrated ? "calibrated" : codec.own ? "own" : "other"; }

}  // namespace

std::string escape(std::string_view content) {
  std::string out;
  for (const char c : content) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string number(double value, int digits) {
  if (std::isnan(value)) return "-";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char out[48];
  const double a = std::fabs(value);
  if (a != 0 && (a < 1e-3 || a >= 1e6)) {
    std::snprintf(out, sizeof out, "%.*e", digits - 1, value);
    std::string s = out;  // 1.20e-05 -> 1.2e-5
    const std::size_t e = s.find('e');
    std::string mantissa = s.substr(0, e), exponent = std::to_string(std::stoi(s.substr(e + 1)));
    if (mantissa.find('.') != std::string::npos) {
      while (mantissa.back() == '0') mantissa.pop_back();
      if (mantissa.back() == '.') mantissa.pop_back();
    }
    return mantissa + "e" + exponent;
  }
  std::snprintf(out, sizeof out, "%.*g", digits, value);
  return out;
}

std::string plot_against_bits(const Report& report, double Quality::*bits, double Quality::*metric, std::string_view title, int dim) {
  double x_hi = 5, y_lo = 1, y_hi = 0;
  std::vector<const CodecReport*> shown;
  for (const CodecReport& codec : report.codecs) {
    const double b = codec.total.*bits, m = codec.total.*metric;
    if (!(m > 0) || std::isinf(m) || b > 12) continue;
    shown.push_back(&codec);
    x_hi = std::max(x_hi, std::ceil(b + 0.6));
    y_lo = std::min(y_lo, m);
    y_hi = std::max(y_hi, m);
  }
  std::string out = open_svg(kWidth, kHeight, title);
  if (shown.empty()) return out + text(kWidth / 2, kHeight / 2, "no values above zero", "label", "middle") + "</svg>";
  const Axis x{1.5, x_hi, kLeft, kWidth - kRight, false};
  const Axis y{y_lo / 2.2, std::min(y_hi * 2, std::max(1.0, y_hi)), kHeight - kBottom, kTop, true};
  const std::string_view y_title = metric == &Quality::kl_mean ? "nats" : "relative squared error";
  out += frame(x, y, bits == &Quality::bits ? "effective bits a value, K and V" : "effective bits a value", y_title);
  const Box area{kLeft + 2, kTop, kWidth - kRight, kHeight - kBottom - 2};
  std::vector<Box> taken;
  if (dim > 0) {
    std::vector<std::pair<double, double>> bound, theory;
    for (double b = x.lo; b <= x.hi + 1e-9; b += 0.05) {
      const double e = std::pow(4.0, -b);
      if (e >= y.lo && e <= y.hi) bound.emplace_back(x(b), y(e));
    }
    for (int b = 1; b <= 8; ++b) {
      const double e = codebook_stats(make_codebook(CodebookKind::Sphere, b, dim)).mse;
      const double at = b + 16.0 / dim;  // an fp16 scale a vector
      if (e >= y.lo && e <= y.hi && at >= x.lo && at <= x.hi) theory.emplace_back(x(at), y(e));
    }
    out += polyline(bound, "bound") + polyline(theory, "theory");
    if (!bound.empty()) {  // nothing lies below the bound: its label has room there
      const auto [bx, by] = bound[bound.size() / 2];
      out += text(bx - 8, by + 12, "Shannon bound", "bound-text", "end");
      taken.push_back({bx - 96, by, bx - 8, by + 15});
    }
    if (!theory.empty()) {
      const auto [tx, ty] = theory.back();
      out += text(tx - 2, ty - 10, "Lloyd-Max", "bound-text", "end");
      taken.push_back({tx - 60, ty - 22, tx - 2, ty - 7});
    }
  }
  for (const CodecReport* codec : shown) {
    const double cx = x(codec->total.*bits), cy = y(codec->total.*metric);
    taken.push_back({cx - 4, cy - 4, cx + 4, cy + 4});
  }
  // Own and calibrated codecs get their labels first.
  std::vector<const CodecReport*> order = shown;
  std::stable_sort(order.begin(), order.end(),
                   [](const CodecReport* a, const CodecReport* b) { return (a->own || a->calibrated) > (b->own || b->calibrated); });
  for (const CodecReport* codec : order) {
    const double cx = x(codec->total.*bits), cy = y(codec->total.*metric);
    out += "<circle cx=\"" + px(cx) + "\" cy=\"" + px(cy) + "\" r=\"4\" class=\"" + std::string(point_class(*codec)) + "\"><title>" +
           escape(codec->name) + ": " + number(codec->total.*bits, 4) + " bits, " + number(codec->total.*metric) + "</title></circle>";
    double at_x = 0, at_y = 0;
    if (place_label(cx, cy, 6.1 * static_cast<double>(codec->name.size()), taken, area, at_x, at_y)) {
      out += text(at_x, at_y, codec->name, "point-label " + std::string(point_class(*codec)) + "-text");
    }
  }
  return out + "</svg>";
}

std::string plot_heat_map(const CodecReport& codec, double Quality::*metric, std::string_view title) {
  std::map<int, std::map<int, double>> cells;
  std::set<int> heads;
  double lo = INFINITY, hi = 0;
  for (const HeadQuality& head : codec.heads) {
    const double value = head.quality.*metric;
    cells[head.layer][head.head] = value;
    heads.insert(head.head);
    if (value > 0 && std::isfinite(value)) {
      lo = std::min(lo, value);
      hi = std::max(hi, value);
    }
  }
  const double cell_w = std::clamp(400.0 / static_cast<double>(heads.size()), 14.0, 64.0),
               cell_h = std::clamp(600.0 / static_cast<double>(cells.size()), 14.0, 30.0);
  const double width = std::max(280.0, kLeft + cell_w * static_cast<double>(heads.size()) + 20);
  const double height = kTop + 18 + cell_h * static_cast<double>(cells.size()) + 44;
  std::string out = open_svg(width, height, title);
  if (hi == 0) return out + text(kLeft, kTop + 30, "no values", "label") + "</svg>";
  const double span = std::max(std::log(hi / lo), 1e-9);
  int column = 0;
  for (const int head : heads) out += text(kLeft + cell_w * (column++ + 0.5), kTop + 12, std::to_string(head), "tick", "middle");
  out += text(kLeft - 8, kTop + 12, "head", "tick", "end");
  int row = 0;
  for (const auto& [layer, values] : cells) {
    const double y = kTop + 18 + cell_h * row++;
    out += text(kLeft - 8, y + cell_h / 2 + 4, "layer " + std::to_string(layer), "tick", "end");
    column = 0;
    for (const int head : heads) {
      const double x = kLeft + cell_w * column++;
      const auto it = values.find(head);
      if (it == values.end() || std::isnan(it->second)) continue;
      const int percent =
          it->second > 0 && std::isfinite(it->second) ? static_cast<int>(std::lround(100 * std::log(it->second / lo) / span)) : 0;
      out += "<rect x=\"" + px(x + 1) + "\" y=\"" + px(y + 1) + "\" width=\"" + px(cell_w - 2) + "\" height=\"" + px(cell_h - 2) +
             "\" rx=\"2\" style=\"fill:color-mix(in oklab,var(--heat-high) " + std::to_string(percent) +
             "%,var(--heat-low))\"><title>layer " + std::to_string(layer) + " head " + std::to_string(head) + ": " + number(it->second) +
             "</title></rect>";
      if (cell_w >= 40)
        out += text(x + cell_w / 2, y + cell_h / 2 + 4, number(it->second, 2), percent > 55 ? "cell high" : "cell", "middle");
    }
  }
  const double y = kTop + 18 + cell_h * row + 14;
  for (int i = 0; i < 20; ++i) {
    out += "<rect x=\"" + px(kLeft + 6.0 * i) + "\" y=\"" + px(y) +
           "\" width=\"6.2\" height=\"8\" style=\"fill:color-mix(in oklab,var(--heat-high) " + std::to_string(i * 100 / 19) +
           "%,var(--heat-low))\"/>";
  }
  return out + text(kLeft, y + 22, number(lo), "tick") + text(kLeft + 120, y + 22, number(hi), "tick", "end") + "</svg>";
}

std::string plot_scatter(const ReportSamples& s) {
  const std::string title =
      "Logits of layer " + std::to_string(s.scatter_layer) + ", kv head " + std::to_string(s.scatter_head) + ", " + s.scatter_codec;
  std::string out = open_svg(kWidth, kHeight, title);
  if (s.exact_logits.empty()) return out + text(kWidth / 2, kHeight / 2, "no queries in this dump", "label", "middle") + "</svg>";
  double lo = INFINITY, hi = -INFINITY;
  for (const std::vector<float>* values : {&s.exact_logits, &s.approx_logits}) {
    lo = std::min<double>(lo, *std::min_element(values->begin(), values->end()));
    hi = std::max<double>(hi, *std::max_element(values->begin(), values->end()));
  }
  const double margin = std::max(0.05 * (hi - lo), 0.1);
  const Axis x{lo - margin, hi + margin, kLeft, kWidth - kRight, false};
  const Axis y{lo - margin, hi + margin, kHeight - kBottom, kTop, false};
  out += frame(x, y, "exact logit (nats)", "reconstructed logit") + line(x(x.lo), y(x.lo), x(x.hi), y(x.hi), "diagonal");
  for (std::size_t i = 0; i < s.exact_logits.size(); ++i) {
    out += "<circle cx=\"" + px(x(s.exact_logits[i])) + "\" cy=\"" + px(y(s.approx_logits[i])) + "\" r=\"1.6\" class=\"dot\"/>";
  }
  return out + "</svg>";
}

std::string plot_histogram(const ReportSamples& s) {
  std::string out = open_svg(kWidth, kHeight,
                             "Rotated coordinates of " + (s.histogram_codec.empty() ? std::string("no codec here") : s.histogram_codec) +
                                 " against its codebook's density");
  if (s.k_density.empty() && s.v_density.empty())
    return out + text(kWidth / 2, kHeight / 2, "nothing that is rotated", "label", "middle") + "</svg>";
  double top = 0.45;
  for (const std::vector<double>* values : {&s.k_density, &s.v_density}) {
    for (const double v : *values) top = std::max(top, v * 1.08);
  }
  const Axis x{-4.5, 4.5, kLeft, kWidth - kRight, false};
  const Axis y{0, top, kHeight - kBottom, kTop, false};
  out += frame(x, y, "coordinate of a unit vector x sqrt(head_dim)", "density");
  for (const double b : s.k_boundaries) {
    if (b > x.lo && b < x.hi) out += line(x(b), y.from, x(b), y.from - 9, "boundary");
  }
  const auto steps = [&](const std::vector<double>& density) {
    std::vector<std::pair<double, double>> points;
    for (std::size_t i = 0; i < density.size(); ++i) {
      if (s.bin_centres[i] > x.lo && s.bin_centres[i] < x.hi) points.emplace_back(x(s.bin_centres[i]), y(density[i]));
    }
    return points;
  };
  out += polyline(steps(s.model_density), "model");
  if (!s.k_density.empty()) out += polyline(steps(s.k_density), "series-k");
  if (!s.v_density.empty()) out += polyline(steps(s.v_density), "series-v");
  const double legend = kWidth - kRight - 150;
  out += line(legend, kTop + 12, legend + 22, kTop + 12, "model") + text(legend + 28, kTop + 16, "codebook's density", "tick");
  if (!s.k_density.empty())
    out += line(legend, kTop + 28, legend + 22, kTop + 28, "series-k") + text(legend + 28, kTop + 32, "keys", "tick");
  if (!s.v_density.empty())
    out += line(legend, kTop + 44, legend + 22, kTop + 44, "series-v") + text(legend + 28, kTop + 48, "values", "tick");
  if (!s.k_boundaries.empty())
    out += line(legend + 11, kTop + 55, legend + 11, kTop + 64, "boundary") + text(legend + 28, kTop + 64, "boundaries", "tick");
  return out + "</svg>";
}

}  // namespace tq4::eval
