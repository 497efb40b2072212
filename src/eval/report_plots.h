// The report's pictures as inline SVG. Colours are CSS classes and variables of the page (report_html.cpp), so that light and dark follow the
// reader's system.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tq4/report.h"

namespace tq4::eval {

/// Text safe inside HTML and attributes.
std::string escape(std::string_view text);
/// `digits` significant digits, exponent form where shorter; "-" for NaN.
std::string number(double value, int digits = 3);

/// A metric of every codec's total against its bits (`bits`: k_bits, v_bits or bits), with the Shannon bound and the Lloyd-Max curve of `dim`
/// where dim > 0. Logarithmic y axis.
std::string plot_against_bits(const Report& report, double Quality::*bits, double Quality::*metric, std::string_view title, int dim);
/// Layers down, heads across, colour by the logarithm of the metric.
std::string plot_heat_map(const CodecReport& codec, double Quality::*metric, std::string_view title);
std::string plot_scatter(const ReportSamples& samples);
std::string plot_histogram(const ReportSamples& samples);

}  // namespace tq4::eval
