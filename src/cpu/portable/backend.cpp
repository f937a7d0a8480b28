#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine&) { return {}; }
const Kernels& kernels(const Machine&) { return portable::kernels; }
}  // namespace

const Backend portable_backend =
    cpu_backend("portable", "any CPU, baseline instructions", why_not_machine, cpu_why_not_layer, kernels);

}  // namespace sale
