// Making calibrations in C++20: a thin layer over the second half of calibration.h, where it is told how.
#ifndef SALE_CALIBRATOR_HPP
#define SALE_CALIBRATOR_HPP

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "sale/calibration.hpp"

namespace sale {
inline namespace v0 {

// Members throw sale::Error. One thread at a time.
class Calibrator {
public:
  explicit Calibrator(const sale_calibrator_options& options) {
    sale_calibrator* raw = nullptr;
    check(sale_calibrator_create(&options, &raw));
    handle_.reset(raw);
  }
  sale_calibrator_state state() const {
    sale_calibrator_state s{};
    s.struct_size = sizeof s;
    check(sale_calibrator_get(get(), &s));
    return s;
  }
  bool done() const { return state().pass == SALE_PASS_DONE; }
  void begin(const std::string& text, int64_t tokens) { check(sale_calibrator_begin(get(), text.c_str(), tokens)); }
  // Tokens from which answers are read.
  void asks(std::span<const int64_t> rows) {
    check(sale_calibrator_asks(get(), rows.data(), static_cast<int64_t>(rows.size())));
  }
  void feed(const sale_calibrator_layer& layer) { check(sale_calibrator_feed(get(), &layer)); }
  void end() { check(sale_calibrator_end(get())); }
  void cancel() { check(sale_calibrator_cancel(get())); }
  Calibration result(int64_t goal = 0) const {
    sale_calibration* raw = nullptr;
    check(sale_calibrator_result(get(), goal, &raw));
    return CalibrationHandle(raw).value();
  }
  // What it points to lives as long as the calibrator.
  sale_calibrator_findings findings(int64_t goal = 0) const {
    sale_calibrator_findings f{};
    f.struct_size = sizeof f;
    check(sale_calibrator_findings_of(get(), goal, &f));
    return f;
  }
  void forget() { check(sale_calibrator_forget(get())); }
  sale_calibrator* get() const noexcept { return handle_.get(); }

private:
  struct Free {
    void operator()(sale_calibrator* p) const { sale_calibrator_destroy(p); }
  };
  std::unique_ptr<sale_calibrator, Free> handle_;
};

}  // namespace v0
}  // namespace sale

#endif  // SALE_CALIBRATOR_HPP
