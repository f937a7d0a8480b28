// Estimators: what belongs to a layer, and what is known of formats and backends.
#include <cstdlib>

#include "core/format.hpp"
#include "core/objects.hpp"
#include "core/sized.hpp"

using namespace sale;

sale_status sale_estimator_create(const sale_layer* layer, sale_estimator** estimator) {
  return guarded([&] {
    const sale_layer l = sized(layer, "layer");
    require(estimator != nullptr, "estimator: null");
    auto made = std::make_shared<Layer>(check_layer(l));
    made->backend = &choose_backend(*made, l.backend, made->not_used);
    made->named = l.backend != nullptr || std::getenv("SALE_BACKEND") != nullptr;
    made->stages().open_layer(*made, l);
    *estimator = new sale_estimator{std::move(made)};
  });
}

void sale_estimator_destroy(sale_estimator* estimator) { delete estimator; }
const char* sale_estimator_backend(const sale_estimator* e) { return e == nullptr ? "" : e->layer->backend->name; }
int64_t sale_estimator_q_block(const sale_estimator* e) { return e == nullptr ? 0 : e->layer->stages().q_block; }

const char* sale_format_name(sale_format format) { return format_name(format); }
sale_status sale_format_from_name(const char* name, sale_format* format) {
  return guarded([&] {
    require(name != nullptr, "name: null");
    require(format != nullptr, "format: null");
    std::string names;
    for (const FormatFacts& each : all_formats) {
      if (std::string(name) == each.name) {
        *format = each.format;
        return;
      }
      names += (names.empty() ? "" : ", ") + std::string(each.name);
    }
    fail(SALE_INVALID_ARGUMENT, "name: no format is called '", name, "'; there are ", names);
  });
}

// ---- backends ------------------------------------------------------------------------------------------------------

namespace {
thread_local std::string reason_text;
bool in_list(int32_t i) { return i >= 0 && i < backend_count(); }
}  // namespace

int32_t sale_backend_count(void) { return backend_count(); }
const char* sale_backend_name(int32_t i) { return in_list(i) ? backend(i).name : ""; }
const char* sale_backend_summary(int32_t i) { return in_list(i) ? backend(i).summary : ""; }
const char* sale_backend_why_not(int32_t i) {
  if (!in_list(i)) return "there is no such backend";
  reason_text = backend(i).why_not_machine(machine());
  return reason_text.c_str();
}
sale_status sale_backend_describe(int32_t i, sale_backend_facts* facts) {
  return guarded([&] {
    require(in_list(i), "backend: ", i, " is not in 0 .. ", backend_count() - 1);
    const Backend& b = backend(i);
    fill(facts, "facts",
         sale_backend_facts{0, b.on_device, b.q_block, b.format, b.formats, b.projected, b.compensates, 0,
                            b.dense_below_projected, b.dense_below});
  });
}
int32_t sale_backend_for(int32_t device) {
  for (int32_t i = 0; i < backend_count(); ++i) {
    const Backend& b = backend(i);
    if (b.on_device != (device != SALE_HOST) || !b.why_not_machine(machine()).empty()) continue;
    const sale_status status =
        guarded([&] { reason_text = b.why_not_unasked != nullptr ? b.why_not_unasked(device) : std::string(); });
    if (status == SALE_OK && reason_text.empty()) return i;
  }
  return -1;
}
const char* sale_backend_why_not_problem(int32_t i, const sale_problem* problem, const sale_layer* layer,
                                         const sale_options* options) {
  if (!in_list(i)) return "there is no such backend";
  const sale_status status = guarded([&] {
    const sale_problem p = sized(problem, "problem");
    const sale_options o = sized(options, "options");
    const Layer l = check_layer(sized(layer, "layer"));
    check_problem(p);
    check_options(o);
    reason_text = backend(i).why_not_layer(l);
    if (reason_text.empty()) reason_text = backend(i).why_not(p, o);
  });
  return status == SALE_OK ? reason_text.c_str() : sale_last_error();
}
const char* sale_machine(void) {
  static const std::string text = describe(machine());
  return text.c_str();
}
