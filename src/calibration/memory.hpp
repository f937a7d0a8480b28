// Memory where index and selection are computed: the host's, or a device's. By the means of the backend that is to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "sale/sale.h"

namespace sale::calibration {

class Memory {
public:
  // Of the place where this layer runs; refuses in words what cannot run at all.
  explicit Memory(const sale_layer& layer);

  class Block {
  public:
    void* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    friend class Memory;
    std::shared_ptr<void> data_;
    size_t size_ = 0;
  };
  // At least that many bytes; the contents are lost when it grows.
  void* need(Block& block, size_t bytes) const;
  // Both wait until the device has done what it was given.
  void read(void* to_host, const void* from, size_t bytes) const;
  void write(void* to, const void* from_host, size_t bytes) const;

private:
  const void* space_;
  int32_t device_;
};

}  // namespace sale::calibration
