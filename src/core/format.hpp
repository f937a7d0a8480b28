// The formats of the estimate, in one table.
#pragma once

#include "sale/sale.h"

namespace sale {

struct FormatFacts {
  sale_format format;
  const char* name;  // in problem lines and calibration files
};
constexpr FormatFacts all_formats[] = {{SALE_INT4, "int4"}, {SALE_FP4, "fp4"}, {SALE_INT8, "int8"}, {SALE_FP8, "fp8"}};

constexpr const char* format_name(sale_format f) {
  for (const FormatFacts& each : all_formats)
    if (each.format == f) return each.name;
  return "";
}
constexpr uint32_t format_bit(sale_format f) { return uint32_t{1} << static_cast<int>(f); }

}  // namespace sale
