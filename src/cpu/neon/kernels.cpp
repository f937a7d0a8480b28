#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::neon::kernels = sale::lane_kernels;
