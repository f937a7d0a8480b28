#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::neon::kernels_dotprod = sale::lane_kernels;
