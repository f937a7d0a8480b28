// What this machine can execute.
#pragma once

#include <string>

namespace sale {

// Instruction sets SALE asks about. A feature is true only when the CPU has it, the operating system saves its
// registers, and (AMX) the kernel has granted this process the use of tiles.
struct Machine {
  std::string cpu;      // the processor's own name, or the architecture
  std::string hidden;   // what SALE_HIDE took away
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ, VL and VNNI
  bool avx512_bf16 = false;
  bool amx_int8 = false;
  bool amx_bf16 = false;
  bool neon = false;  // a 64-bit Arm CPU
  bool neon_dotprod = false;
  bool neon_i8mm = false;
  bool neon_bf16 = false;
  std::string amx_reason;  // why AMX is off although the CPU has it
  int cpus = 1;            // available to this process
};

// Read once per process; the AMX permission is asked for on the first call.
const Machine& machine();
std::string describe(const Machine& m);
// Whether SALE_HIDE takes this feature or backend away.
bool hidden(const Machine& m, const std::string& name);

}  // namespace sale
