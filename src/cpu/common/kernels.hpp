// The walks over the products of simd.hpp's lanes: all kernels of an instruction set that has no unit of its own for
// them.
#pragma once

#include "cpu/common/audit.hpp"
#include "cpu/common/select.hpp"
#include "cpu/common/tables.hpp"

namespace sale {
namespace {

using Scanned = Select<ScanDot>;
using Attended = AttendPair<Attend<ScoreF32, MixF32>, Attend<ScoreI8, MixF32>>;

constexpr Kernels lane_kernels{Scanned::scratch, Attended::scratch, index_blocks,   bias_blocks,
                               Scanned::item,    Attended::item,    Audit::scratch, Audit::item};

}  // namespace
}  // namespace sale
