// A backend is a value: a name, reasons, and the stages. One ordered list, fastest first.
#pragma once

#include <string>

#include "core/kernel.hpp"
#include "core/machine.hpp"
#include "sale/sale.h"

namespace sale {

struct Backend {
  const char* name;
  const char* summary;
  std::string (*why_not_machine)(const Machine&);
  // Beyond the machine: shapes and types. Called with a problem and options that core has already checked.
  std::string (*why_not)(const sale_problem&, const sale_options&);
  // The kernels for this machine; asked only when why_not_machine is empty.
  const Kernels& (*kernels)(const Machine&);
};

extern const Backend portable_backend, avx2_backend, avx512_backend, amx_backend;

int backend_count();
const Backend& backend(int i);

// The backend for this problem: the one asked for by option or SALE_BACKEND, else the first of the list that can.
// Appends to `notes` why those before it could not. Throws Failure with all names and reasons.
const Backend& choose_backend(const sale_problem& p, const sale_options& o, std::string& notes);

}  // namespace sale
