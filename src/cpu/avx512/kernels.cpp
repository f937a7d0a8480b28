#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::avx512::kernels = sale::lane_kernels;
