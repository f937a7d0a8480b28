// The C functions of calibrators.
#include "calibration/calibrator.hpp"
#include "calibration/handle.hpp"
#include "calibration/structs.hpp"

struct sale_calibrator : sale::calibration::Calibrator {
  using Calibrator::Calibrator;
};

namespace {

using namespace sale::calibration;
using sale::require;

// What the C++ layer, on which the measuring stands, throws is told as it is.
template <class Body>
sale_status told(Body&& body) {
  return sale::guarded([&] {
    try {
      body();
    } catch (const sale::Error& e) {
      sale::fail(e.status(), e.what());
    }
  });
}

template <class T>
T& given(T* calibrator) {
  require(calibrator != nullptr, "calibrator: null");
  return *calibrator;
}

}  // namespace

sale_status sale_calibrator_create(const sale_calibrator_options* options, sale_calibrator** calibrator) {
  return told([&] {
    check_out(calibrator, "calibrator");
    *calibrator = std::make_unique<sale_calibrator>(request_of(taken(options, "options"))).release();
  });
}

void sale_calibrator_destroy(sale_calibrator* calibrator) { delete calibrator; }

sale_status sale_calibrator_get(const sale_calibrator* calibrator, sale_calibrator_state* state) {
  return told([&] { give(given(calibrator).state(), state, "state"); });
}

sale_status sale_calibrator_begin(sale_calibrator* calibrator, const char* text, int64_t tokens) {
  return told([&] { given(calibrator).begin(text == nullptr ? "" : text, tokens); });
}

sale_status sale_calibrator_asks(sale_calibrator* calibrator, const int64_t* rows, int64_t count) {
  return told([&] {
    require(count >= 0 && (rows != nullptr || count == 0), "rows: null, or count ", count, " below 0");
    given(calibrator).asks({rows, static_cast<size_t>(count)});
  });
}

sale_status sale_calibrator_feed(sale_calibrator* calibrator, const sale_calibrator_layer* layer) {
  return told([&] { given(calibrator).feed(taken(layer, "layer")); });
}

sale_status sale_calibrator_end(sale_calibrator* calibrator) {
  return told([&] { given(calibrator).end(); });
}

sale_status sale_calibrator_cancel(sale_calibrator* calibrator) {
  return told([&] { given(calibrator).cancel(); });
}

sale_status sale_calibrator_result(const sale_calibrator* calibrator, int64_t goal, sale_calibration** calibration) {
  return told([&] {
    check_out(calibration, "calibration");
    *calibration = std::make_unique<sale_calibration>(given(calibrator).result(goal)).release();
  });
}

sale_status sale_calibrator_findings_of(const sale_calibrator* calibrator, int64_t goal,
                                        sale_calibrator_findings* findings) {
  return told([&] { give(given(calibrator).findings(goal), findings, "findings"); });
}

sale_status sale_calibrator_forget(sale_calibrator* calibrator) {
  return told([&] { given(calibrator).forget(); });
}
