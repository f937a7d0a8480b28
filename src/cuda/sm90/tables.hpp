// What of a plan is Hopper's own.
#pragma once

#include "cuda/common/tables.hpp"
#include "cuda/sm90/device.hpp"

namespace sale::sm90 {

using cuda::Tables;
using cuda::tables_of;

int32_t width_of(const sale::Estimator& e);  // bytes of a coded row
void make_tables(Plan& plan, const sale_options&, Areas& areas);
std::string explain(const Plan& plan);

}  // namespace sale::sm90
