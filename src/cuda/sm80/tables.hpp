// What of a plan is Ampere's and Ada's own.
#pragma once

#include "cuda/common/tables.hpp"
#include "cuda/sm80/kernels.hpp"

namespace sale::sm80 {

using cuda::Tables;
using cuda::tables_of;

extern const cuda::Architecture architecture;

void make_tables(Plan& plan, const sale_options&, Areas& areas);
std::string explain(const Plan& plan);

}  // namespace sale::sm80
