#include "calibration/memory.hpp"

#include "core/plan.hpp"

namespace sale::calibration {
namespace {

const Space& space_of(const void* p) { return *static_cast<const Space*>(p); }

}  // namespace

Memory::Memory(const sale_layer& layer) : device_(layer.device) {
  std::string notes;
  space_ = &choose_backend(check_layer(layer), layer.backend, notes).stages->space;
}

void* Memory::need(Block& block, size_t bytes) const {
  if (bytes > block.size_) {
    block.data_.reset(), block.size_ = 0;
    block.data_ = space_of(space_).allocate(bytes, device_);
    block.size_ = bytes;
  }
  return block.data();
}

void Memory::read(void* to_host, const void* from, size_t bytes) const {
  space_of(space_).read(to_host, from, bytes, device_);
}
void Memory::write(void* to, const void* from_host, size_t bytes) const {
  space_of(space_).write(to, from_host, bytes, device_);
}

}  // namespace sale::calibration
