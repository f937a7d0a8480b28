// The calibration file: reading and checking. Format: include/sale/calibration.hpp.
#include "sale/calibration.hpp"

#include <algorithm>
#include <fstream>

#include "fields.hpp"

namespace sale {
inline namespace v0 {
namespace {

using files::Fields;
using files::in_quotes;
using files::Json;
using files::refuse;

struct ProjectionsEntry {
  std::string file;
  uint64_t fingerprint = 0;
};

ModelIdentity read_identity(Fields f) {
  ModelIdentity m;
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
  return m;
}

void read_estimator(Fields f, Calibration& c) {
  const std::string format = f.text("format", 16);
  if (format != "int4" && format != "int8" && format != "fp8")
    refuse(f.path("format"), " is ", in_quotes(format), "; 'int4', 'int8' and 'fp8' are known");
  c.format = format == "int4" ? SALE_INT4 : format == "int8" ? SALE_INT8 : SALE_FP8;
  const int32_t step = c.format == SALE_FP8 ? 4 : 16;
  c.rank = static_cast<int32_t>(f.integer("rank", step, c.model.head_dim));
  f.finish();
  if (c.rank % step != 0) refuse(f.path("rank"), " is ", c.rank, "; a multiple of ", step, " is needed");
  if (c.format == SALE_FP8 && c.rank > 60 && c.rank != c.model.head_dim)
    refuse(f.path("rank"), " is ", c.rank, "; fp8 takes up to 60, or head_dim, ", c.model.head_dim);
  if (c.format == SALE_INT4 && c.rank != c.model.head_dim)
    refuse(f.path("rank"), " is ", c.rank, "; int4 takes only head_dim, ", c.model.head_dim);
}

void read_blocks(Fields f, Calibration& c) {
  f.integer("query", SALE_Q_BLOCK, SALE_Q_BLOCK);
  f.integer("key", SALE_K_BLOCK, SALE_K_BLOCK);
  c.sink = static_cast<int32_t>(f.integer("sink", 32, 256));
  c.local = static_cast<int32_t>(f.integer("local", 32, 1024));
  c.dense_below = f.integer("dense_below", 0, int64_t{1} << 40);
  f.finish();
  if (c.sink % 32 != 0) refuse(f.path("sink"), " is ", c.sink, "; a multiple of 32 is needed");
  if (c.local % 32 != 0) refuse(f.path("local"), " is ", c.local, "; a multiple of 32 is needed");
}

void read_thresholds(const Json& rows, const std::string& what, Calibration& c) {
  if (!rows.is_array() || rows.size() != static_cast<size_t>(c.model.layers))
    refuse(what, rows.is_array() ? " has " + std::to_string(rows.size()) + " rows" : std::string(" is not a list"),
           "; ", c.model.layers, " are needed, one per layer");
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    const Json& row = rows[layer];
    const std::string here = what + "[" + std::to_string(layer) + "]";
    if (!row.is_array() || row.size() != static_cast<size_t>(c.model.q_heads))
      refuse(here, row.is_array() ? " has " + std::to_string(row.size()) + " numbers" : std::string(" is not a list"),
             "; ", c.model.q_heads, " are needed, one per query head");
    for (size_t head = 0; head < row.size(); ++head)
      c.thresholds.push_back(
          static_cast<float>(files::as_number(row[head], here + "[" + std::to_string(head) + "]", 0, 1e6)));
  }
}

void read_provenance(Fields f, Calibration& c) {
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

void read_error(Fields f, Calibration& c) {
  c.relative_l1_limit = f.number("relative_l1_limit", 0, 1e6);
  c.relative_l1 = f.number("relative_l1", 0, 1e6);
  c.retained_mass = f.number("retained_mass", 0, 1);
  c.density = f.number("density", 0, 1);
  f.finish();
}

ProjectionsEntry read_entry(Fields& f) {
  if (f.need("projections").is_null()) return {};
  Fields p = f.object("projections");
  ProjectionsEntry entry{p.text("file", 200), p.hex64("fingerprint")};
  p.finish();
  const std::string& n = entry.file;
  // A name, not a path: a calibration cannot make the reader open files elsewhere.
  if (n.empty() || n[0] == '.' || n.find_first_of(std::string("/\\:\0", 4)) != std::string::npos)
    refuse(p.path("file"), " is ", in_quotes(n), "; a file name without folders is needed");
  return entry;
}

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

template <class T>
std::span<const float> slice(const std::vector<float>& all, int32_t layer, T count) {
  const auto n = static_cast<size_t>(count);
  return all.empty() ? std::span<const float>() : std::span(all).subspan(static_cast<size_t>(layer) * n, n);
}

}  // namespace

Fingerprint& Fingerprint::tensor(std::string_view name, std::string_view type, std::span<const int64_t> shape,
                                 std::span<const std::byte> bytes) {
  const std::string_view zero("\0", 1);
  add(name).add(zero).add(type).add(zero);
  for (int64_t extent : shape) add(std::to_string(extent) + ",");
  return add(bytes.first(std::min<size_t>(64, bytes.size())));
}

std::span<const float> Calibration::layer_thresholds(int32_t layer) const {
  return slice(thresholds, layer, model.q_heads);
}
std::span<const float> Calibration::layer_q_projection(int32_t layer) const {
  return slice(q_projections, layer, int64_t{model.kv_heads} * model.head_dim * rank);
}
std::span<const float> Calibration::layer_k_projection(int32_t layer) const {
  return slice(k_projections, layer, int64_t{model.kv_heads} * model.head_dim * rank);
}

Options Calibration::options(int32_t layer) const {
  if (layer < 0 || layer >= model.layers) refuse("layer: ", layer, " is not in 0 .. ", model.layers - 1);
  Options o;
  o.thresholds(layer_thresholds(layer)).sink(sink).local(local).dense_below(dense_below);
  if (projected())
    o.estimator(format, rank, layer_q_projection(layer), layer_k_projection(layer));
  else
    o.estimator(format);
  return o;
}

std::string projections_file(std::string_view json, const std::string& where) {
  const Json tree = files::parse_strict(json, where);
  Fields f(tree, where);
  return read_entry(f).file;
}

Calibration parse_calibration(std::string_view json, std::string_view projections, const std::string& where) {
  if (json.size() > files::max_json_bytes)
    refuse(where, ": has ", json.size(), " bytes; at most ", files::max_json_bytes, " are read");
  const Json tree = files::parse_strict(json, where);
  Fields f(tree, where);
  f.integer("schema", 1, 1);
  Calibration c;
  c.library = f.text("library", 40);
  c.model = read_identity(f.object("model"));
  read_estimator(f.object("estimator"), c);
  read_blocks(f.object("blocks"), c);
  read_thresholds(f.need("thresholds"), f.path("thresholds"), c);
  read_provenance(f.object("provenance"), c);
  read_error(f.object("error"), c);
  const ProjectionsEntry entry = read_entry(f);
  f.finish();

  const bool needed = c.rank < c.model.head_dim;
  if (needed != !entry.file.empty())
    refuse(f.path("projections"),
           needed ? " is null; rank below head_dim needs a file" : " names a file; rank head_dim takes none");
  if (!needed) return c;
  const std::string file = where + ": projections " + in_quotes(entry.file);
  if (Fingerprint().add(projections).value() != entry.fingerprint)
    refuse(file, " is not the file this calibration was written with (fingerprint differs)");
  files::read_projections(projections, file, {c.model.layers, c.model.kv_heads, c.model.head_dim, c.rank},
                          c.q_projections, c.k_projections);
  return c;
}

Calibration read_calibration(const std::filesystem::path& json) {
  const std::string text = read_bytes(json, files::max_json_bytes), where = json.string();
  const std::string file = projections_file(text, where);
  const std::string projections =
      file.empty() ? "" : read_bytes(json.parent_path() / file, files::max_projection_bytes);
  return parse_calibration(text, projections, where);
}

void check_model(const Calibration& c, const ModelIdentity& m) {
  const auto differ = [&](const char* what, const auto& theirs, const auto& ours) {
    if (theirs != ours)
      refuse("calibration: made for a model with ", what, " ", theirs, " ('", c.model.name, "'); this one has ", ours);
  };
  differ("layers", c.model.layers, m.layers);
  differ("q_heads", c.model.q_heads, m.q_heads);
  differ("kv_heads", c.model.kv_heads, m.kv_heads);
  differ("head_dim", c.model.head_dim, m.head_dim);
  differ("fingerprint", files::hex64(c.model.fingerprint), files::hex64(m.fingerprint));
}

}  // namespace v0
}  // namespace sale
