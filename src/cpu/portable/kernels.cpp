#include "cpu/common/kernels.hpp"

constinit const sale::Kernels sale::portable::kernels = sale::lane_kernels;
