#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::avx2::kernels = sale::lane_kernels;
