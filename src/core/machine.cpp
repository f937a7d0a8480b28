#include "core/machine.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sale {
namespace {

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

#if defined(__x86_64__)
struct Cpuid {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  Cpuid(uint32_t leaf, uint32_t sub) { __cpuid_count(leaf, sub, a, b, c, d); }
};

bool bit(uint32_t word, int i) { return ((word >> i) & 1u) != 0; }

uint64_t xgetbv0() {
  uint32_t lo = 0, hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (uint64_t{hi} << 32) | lo;
}

std::string brand() {
  char name[49] = {};
  if (Cpuid(0x80000000u, 0).a < 0x80000004u) return "x86-64";
  for (uint32_t i = 0; i < 3; ++i) {
    const Cpuid r(0x80000002u + i, 0);
    std::memcpy(name + 16 * i, &r, 16);
  }
  const char* start = name;
  while (*start == ' ') ++start;
  return start;
}

// The kernel hands out tile registers only on request; using them without ends in a signal.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
  return false;
#endif
}

void detect(Machine& m) {
  m.cpu = brand();
  const uint32_t leaves = Cpuid(0, 0).a;
  const Cpuid one(1, 0);
  if (leaves < 7 || !bit(one.c, 27)) return;  // OSXSAVE
  const uint64_t saved = xgetbv0();
  const bool os_avx = (saved & 0x6) == 0x6, os_512 = (saved & 0xe6) == 0xe6, os_amx = (saved & 0x60000) == 0x60000;
  const Cpuid seven(7, 0), seven1(7, 1);
  m.avx2 = os_avx && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);
  m.avx512 = m.avx2 && os_512 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) &&
             bit(seven.c, 11);
  m.avx512_bf16 = m.avx512 && bit(seven1.a, 5);
  const bool tiles = m.avx512 && bit(seven.d, 24);
  if (!tiles) return;
  if (!os_amx) {
    m.amx_reason = "the operating system does not save tile registers";
  } else if (!ask_for_tiles()) {
    m.amx_reason = "the kernel refused this process the use of tile registers";
  } else {
    m.amx_int8 = bit(seven.d, 25);
    m.amx_bf16 = bit(seven.d, 22);
  }
}
#elif defined(__aarch64__)
#if defined(__linux__)
void detect(Machine& m) {
  const uint64_t one = getauxval(AT_HWCAP), two = getauxval(26);  // AT_HWCAP2, which old headers lack
  m.cpu = "arm64";
  m.neon = true;  // part of the architecture
  m.neon_dotprod = (one >> 20 & 1) != 0;
  m.neon_i8mm = (two >> 13 & 1) != 0;
  m.neon_bf16 = (two >> 14 & 1) != 0;
}
#elif defined(__APPLE__)
bool feature(const char* name) {
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname(name, &has, &size, nullptr, 0) == 0 && has != 0;
}
void detect(Machine& m) {
  char name[128] = {};
  size_t size = sizeof name - 1;
  m.cpu = sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0 ? name : "arm64";
  m.neon = true;
  m.neon_dotprod = feature("hw.optional.arm.FEAT_DotProd");
  m.neon_i8mm = feature("hw.optional.arm.FEAT_I8MM");
  m.neon_bf16 = feature("hw.optional.arm.FEAT_BF16");
}
#else
void detect(Machine& m) {
  m.cpu = "arm64";
  m.neon = true;  // whether it has more, this system is not asked
}
#endif
#else
void detect(Machine& m) { m.cpu = "a processor without kernels of its own"; }
#endif

// SALE_HIDE=avx512,amx_int8: makes this process behave as on a machine without them (tests, comparisons).
void hide(Machine& m) {
  const char* list = std::getenv("SALE_HIDE");
  if (list == nullptr) return;
  m.hidden = list;
  const auto named = [&](const char* f) { return hidden(m, f); };
  if (named("avx2")) m.avx2 = false;
  if (named("avx512") || !m.avx2) m.avx512 = false;
  if (named("avx512_bf16") || !m.avx512) m.avx512_bf16 = false;
  if (named("amx_int8") || !m.avx512) m.amx_int8 = false;
  if (named("amx_bf16") || !m.avx512) m.amx_bf16 = false;
  if (named("neon")) m.neon = false;
  if (named("neon_dotprod") || !m.neon) m.neon_dotprod = false;
  if (named("neon_i8mm") || !m.neon) m.neon_i8mm = false;
  if (named("neon_bf16") || !m.neon) m.neon_bf16 = false;
}

}  // namespace

const Machine& machine() {
  static const Machine m = [] {
    Machine r;
    r.cpus = available_cpus();
    detect(r);
    hide(r);
    return r;
  }();
  return m;
}

bool hidden(const Machine& m, const std::string& name) {
  return ("," + m.hidden + ",").find("," + name + ",") != std::string::npos;
}

std::string describe(const Machine& m) {
  std::string s = m.cpu + ", " + std::to_string(m.cpus) + " CPU" + (m.cpus == 1 ? "" : "s") + ":";
  const struct {
    bool have;
    const char* name;
  } features[] = {
      {m.avx2, "avx2"},          {m.avx512, "avx512"}, {m.avx512_bf16, "avx512_bf16"},   {m.amx_int8, "amx_int8"},
      {m.amx_bf16, "amx_bf16"},  {m.neon, "neon"},     {m.neon_dotprod, "neon_dotprod"}, {m.neon_i8mm, "neon_i8mm"},
      {m.neon_bf16, "neon_bf16"}};
  bool any = false;
  for (const auto& f : features) {
    if (!f.have) continue;
    s += std::string(" ") + f.name;
    any = true;
  }
  if (!any) s += " no vector extension SALE has kernels for";
  if (!m.hidden.empty()) s += " (SALE_HIDE=" + m.hidden + ")";
  return s;
}

}  // namespace sale
