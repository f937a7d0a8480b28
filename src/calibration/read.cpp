// The calibration file: reading and checking. Format: include/sale/calibration.h.
#include <algorithm>
#include <cstring>
#include <fstream>

#include "calibration/contents.hpp"
#include "calibration/fields.hpp"

namespace sale::calibration {
namespace {

constexpr double most_threshold = 1e6;

void read_model(Fields f, Contents& m) {
  m.name = f.text("name", 200);
  m.layers = static_cast<int32_t>(f.integer("layers", 1, 4096));
  m.q_heads = static_cast<int32_t>(f.integer("q_heads", 1, 65536));
  m.kv_heads = static_cast<int32_t>(f.integer("kv_heads", 1, m.q_heads));
  m.head_dim = static_cast<int32_t>(f.integer("head_dim", 16, 256));
  m.fingerprint = f.hex64("fingerprint");
  f.finish();
  if (m.q_heads % m.kv_heads != 0)
    refuse(f.path("kv_heads"), " is ", m.kv_heads, "; a divisor of q_heads, ", m.q_heads, ", is needed");
  if (m.head_dim % 16 != 0) refuse(f.path("head_dim"), " is ", m.head_dim, "; a multiple of 16 is needed");
}

void read_estimator(Fields f, Contents& c) {
  const std::string format = f.text("format", 16);
  if (sale_format_from_name(format.c_str(), &c.format) != SALE_OK || format != format_name(c.format))
    refuse(f.path("format"), " is ", in_quotes(format), "; 'int4', 'fp4', 'int8' and 'fp8' are known");
  const int64_t rank = f.integer("rank", 1, c.head_dim);
  f.finish();
  check_rank(c.format, rank, c.head_dim, f.path("rank"));
  c.rank = static_cast<int32_t>(rank);
}

void read_blocks(Fields f, Contents& c) {
  f.integer("query", SALE_Q_BLOCK, SALE_Q_BLOCK);
  f.integer("key", SALE_K_BLOCK, SALE_K_BLOCK);
  c.sink = static_cast<int32_t>(f.integer("sink", 32, 256));
  c.local = static_cast<int32_t>(f.integer("local", 32, 1024));
  c.dense_below = f.integer("dense_below", 0, int64_t{1} << 40);
  f.finish();
  if (c.sink % 32 != 0) refuse(f.path("sink"), " is ", c.sink, "; a multiple of 32 is needed");
  if (c.local % 32 != 0) refuse(f.path("local"), " is ", c.local, "; a multiple of 32 is needed");
}

void read_thresholds(const Json& rows, const std::string& what, Contents& c) {
  if (!rows.is_array() || rows.size() != static_cast<size_t>(c.layers))
    refuse(what, rows.is_array() ? " has " + std::to_string(rows.size()) + " rows" : std::string(" is not a list"),
           "; ", c.layers, " are needed, one per layer");
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    const Json& row = rows[layer];
    const std::string here = what + "[" + std::to_string(layer) + "]";
    if (!row.is_array() || row.size() != static_cast<size_t>(c.q_heads))
      refuse(here, row.is_array() ? " has " + std::to_string(row.size()) + " numbers" : std::string(" is not a list"),
             "; ", c.q_heads, " are needed, one per query head");
    for (size_t head = 0; head < row.size(); ++head) {
      const bool local = row[head].is_string() && row[head] == "local";
      c.thresholds.push_back(
          local ? SALE_TAU_LOCAL
                : static_cast<float>(as_number(row[head], here + "[" + std::to_string(head) + "]", 0, most_threshold)));
    }
  }
}

void read_provenance(Fields f, Contents& c) {
  const Json& prompts = f.need("prompts");
  if (!prompts.is_array() || prompts.size() > 1000) refuse(f.path("prompts"), " is not a list of at most 1000");
  for (size_t i = 0; i < prompts.size(); ++i) {
    Fields p(prompts[i], f.path("prompts") + "[" + std::to_string(i) + "]");
    c.prompts.push_back({p.text("text", 1000), p.integer("tokens", 1, int64_t{1} << 40)});
    p.finish();
  }
  c.command = f.text("command", 4000);
  c.date = f.text("date", 40);
  c.note = f.text("note", 4000);
  f.finish();
}

void read_error(Fields f, Contents& c) {
  c.relative_l1_limit = f.number("relative_l1_limit", 0, 1e6);
  c.relative_l1 = f.number("relative_l1", 0, 1e6);
  c.retained_mass = f.number("retained_mass", 0, 1);
  c.density = f.number("density", 0, 1);
  f.finish();
}

// Which file has the tensors.
void read_entry(Fields& f, Parsed& to) {
  if (f.need("projections").is_null()) return;
  Fields p = f.object("projections");
  to.file = p.text("file", 200), to.fingerprint = p.hex64("fingerprint");
  p.finish();
  const std::string& n = to.file;
  // A name, not a path: a calibration cannot make the reader open files elsewhere.
  if (n.empty() || n[0] == '.' || n.find_first_of(std::string("/\\:\0", 4)) != std::string::npos)
    refuse(p.path("file"), " is ", in_quotes(n), "; a file name without folders is needed");
}

}  // namespace

std::string read_bytes(const std::filesystem::path& path, size_t most) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) refuse(path.string(), ": no such file");
  if (!std::filesystem::is_regular_file(status)) refuse(path.string(), ": not a file");
  const auto size = std::filesystem::file_size(path, error);
  if (error) refuse(path.string(), ": ", error.message());
  if (size > most) refuse(path.string(), ": has ", size, " bytes; at most ", most, " are read");
  std::string bytes(static_cast<size_t>(size), '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(size))) refuse(path.string(), ": cannot be read");
  return bytes;
}

void check_rank(sale_format format, int64_t rank, int32_t head_dim, const std::string& what) {
  if (rank == head_dim) return;
  const int step = format == SALE_FP8 ? 4 : 16;
  if (format == SALE_INT4) refuse(what, " is ", rank, "; int4 takes only head_dim, ", head_dim);
  if (rank < step || rank > head_dim || rank % step != 0)
    refuse(what, " is ", rank, "; a multiple of ", step, " is needed, up to head_dim, ", head_dim);
  if (format == SALE_FP8 && rank > 60) refuse(what, " is ", rank, "; fp8 takes up to 60, or head_dim, ", head_dim);
}

const char* format_name(sale_format format) { return sale_format_name(format); }

uint64_t fingerprint(std::string_view bytes) {
  return sale_fingerprint(SALE_FINGERPRINT_START, bytes.data(), bytes.size());
}

Parsed parse_json(std::string_view json, const std::string& where) {
  if (json.size() > max_json_bytes)
    refuse(where, ": has ", json.size(), " bytes; at most ", max_json_bytes, " are read");
  const Json tree = parse_strict(json, where);
  Fields f(tree, where);
  Parsed p;
  Contents& c = p.contents;
  f.integer("schema", 1, 1);
  c.library = f.text("library", 40);
  read_model(f.object("model"), c);
  read_estimator(f.object("estimator"), c);
  read_blocks(f.object("blocks"), c);
  read_thresholds(f.need("thresholds"), f.path("thresholds"), c);
  read_provenance(f.object("provenance"), c);
  read_error(f.object("error"), c);
  read_entry(f, p);
  f.finish();
  if (c.projected() && p.file.empty()) refuse(f.path("projections"), " is null; rank below head_dim needs a file");
  return p;
}

Contents parse(std::string_view json, std::string_view tensors, const std::string& where) {
  Parsed p = parse_json(json, where);
  if (!p.file.empty()) add_tensors(p, tensors, where + ": projections " + in_quotes(p.file));
  return std::move(p.contents);
}

Contents read(const std::filesystem::path& json) {
  const std::string where = json.string();
  Parsed p = parse_json(read_bytes(json, max_json_bytes), where);
  if (!p.file.empty())
    add_tensors(p, read_bytes(json.parent_path() / p.file, max_tensor_bytes),
                where + ": projections " + in_quotes(p.file));
  return std::move(p.contents);
}

}  // namespace sale::calibration
