// From sums to the numbers of a report: heads, layers, totals.
#pragma once

#include "tq4/report.h"

namespace tq4::eval {

/// Fills head.quality from its sums (sizes and theory are there already).
void fill_quality(HeadQuality& head);
/// Fills codec.layers, codec.total and codec.matrix_bytes from codec.heads.
void fill_totals(CodecReport& codec);
/// Notes on layers whose keys are constant or zero: their relative numbers say little.
void note_odd_layers(Report& report);

}  // namespace tq4::eval
