// The readers of a model folder, of a GGUF file and of a chat template. The first byte of an input picks the reader,
// the rest is the file: it must be read, or refused with sale::lm::Error; nothing else may come out.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "lm/config.hpp"
#include "lm/error.hpp"
#include "lm/gguf.hpp"
#include "lm/safetensors.hpp"
#include "lm/template.hpp"
#include "lm/tokenizer.hpp"
#include "refused.hpp"

namespace {

// A file without a disk: the readers take paths, and map what they read.
class MemoryFile {
public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("fuzz", 0)) {
    for (size_t done = 0; done < size;) {
      const ssize_t n = write(descriptor_, data + done, size - done);
      if (n <= 0) break;
      done += static_cast<size_t>(n);
    }
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

private:
  int descriptor_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const MemoryFile file(data + 1, size - 1);
  try {
    switch (data[0] % 5) {
      case 0: {
        const auto tensors = sale::lm::SafeTensors::open(file.path());
        for (const std::string& name : tensors.names()) {
          volatile unsigned sum = 0;  // every byte a tensor claims must be there
          for (const std::byte b : tensors.get(name).bytes) sum = sum + static_cast<unsigned>(b);
        }
        break;
      }
      case 1: sale::lm::read_config(file.path()); break;
      case 3: {
        const auto gguf = sale::lm::Gguf::open(file.path());
        for (const auto& [name, tensor] : gguf.tensors())
          if (tensor.type->widen != nullptr && tensor.bytes.size() < 1'000'000) gguf.floats(name, tensor.shape);
        sale::lm::read_config(file.path());
        const auto tokenizer = sale::lm::Tokenizer::load(file.path());
        tokenizer.decode(tokenizer.encode("It was a dark night, in 1871."));
        break;
      }
      case 4: {
        const sale::lm::Json message = {{"role", "user"}, {"content", "why?"}};
        const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
        sale::lm::Template(text, "template")
            .render({{"messages", {message}}, {"add_generation_prompt", true}, {"bos_token", "<s>"}});
        break;
      }
      default: {
        const auto tokenizer = sale::lm::Tokenizer::load(file.path());
        tokenizer.decode(tokenizer.encode("It was a dark night, in 1871."));
      }
    }
  } catch (const sale::lm::Error& e) {
    sale_fuzz::refused(e.what());
  }
  return 0;
}
