// sale adopt: a calibration for another copy of its model: other names and types of the same weights, so another
// fingerprint, and perhaps other rows first.
#include <memory>

#include "command.hpp"
#include "lab/answers.hpp"
#include "sale/calibration.hpp"

namespace sale::cli {
namespace {

struct Arguments {
  std::string calibration, fingerprint, out, json;
  bool pairs = false;
  ModelIdentity shape;  // of that copy; 0: as the calibration's
};

// Of each matrix [head_dim, columns], rows from halves (0, 1, .. | n/2, ..) to pairs (0, n/2, 1, n/2 + 1, ..).
void pair_rows(std::vector<float>& matrices, int32_t head_dim, int32_t columns) {
  const std::vector<float> from = matrices;
  const auto rows = static_cast<size_t>(head_dim), width = static_cast<size_t>(columns), half = rows / 2;
  for (size_t begin = 0; begin < from.size(); begin += rows * width)
    for (size_t row = 0; row < rows; ++row) {
      const size_t source = row % 2 * half + row / 2;
      std::copy_n(from.begin() + static_cast<ptrdiff_t>(begin + source * width), width,
                  matrices.begin() + static_cast<ptrdiff_t>(begin + row * width));
    }
}

int run(const Arguments& a) {
  Calibration c = read_calibration(a.calibration);
  if (a.fingerprint.size() != 16 || a.fingerprint.find_first_not_of("0123456789abcdef") != std::string::npos)
    refuse("--fingerprint: '{}' is not 16 hexadecimal digits (0-9, a-f)", a.fingerprint);
  ModelIdentity shape = a.shape;
  for (auto m : {&ModelIdentity::layers, &ModelIdentity::q_heads, &ModelIdentity::kv_heads, &ModelIdentity::head_dim})
    if (shape.*m == 0) shape.*m = c.model.*m;
  check_model(c, shape);
  c.model.fingerprint = std::stoull(a.fingerprint, nullptr, 16);
  if (a.pairs) {
    pair_rows(c.q_projections, c.model.head_dim, c.rank), pair_rows(c.k_projections, c.model.head_dim, c.rank);
    pair_rows(c.smoothing, c.model.head_dim, 1);
  }
  write_calibration(a.out, c);
  fmt::print("written: {}\n", a.out);
  if (!a.json.empty()) {
    Json j = json_head("adopt");
    j["model"] = c.model.name, j["fingerprint"] = a.fingerprint, j["written"] = a.out;
    write_json(a.json, j);
  }
  return good;
}

}  // namespace

void add_adopt(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "adopt", "Write a calibration for another copy of its model, such as a GGUF (scripts/gguf.py calibration)");
  auto a = std::make_shared<Arguments>();
  command->add_option("calibration", a->calibration, "calibration file")->required();
  command->add_option("--fingerprint", a->fingerprint, "of that copy: 16 hexadecimal digits")->required();
  command->add_flag("--pairs", a->pairs,
                    "its heads have their rows in pairs instead of halves, as llama.cpp's converter puts Llama's");
  command->add_option("--layers", a->shape.layers, "refuse a calibration of another number of layers")
      ->check(CLI::Range(1, 4096));
  command->add_option("--q-heads", a->shape.q_heads, "the same of query heads")->check(CLI::Range(1, 65536));
  command->add_option("--kv-heads", a->shape.kv_heads, "the same of key heads")->check(CLI::Range(1, 65536));
  command->add_option("--out", a->out, "calibration file to write")->required();
  command->add_option("--json", a->json, "write the result there");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
