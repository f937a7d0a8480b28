// sale info: machine, backends and why each can or cannot be used; the support table of the documentation.
#include <algorithm>

#include "command.hpp"
#include "lab/answers.hpp"

namespace sale::cli {
namespace {

const char* name_of(sale_dtype t) { return t == SALE_F32 ? "f32" : t == SALE_F16 ? "f16" : "bf16"; }
const char* name_of(sale_compute c) {
  return c == SALE_COMPUTE_EXACT ? "exact" : c == SALE_COMPUTE_INT8 ? "int8" : c == SALE_COMPUTE_FP8 ? "fp8" : "f16";
}

struct Estimate {
  const char* name;
  sale_format format;
  int32_t rank;
};
constexpr Estimate estimates[] = {{"int8", SALE_INT8, 0},     {"int4", SALE_INT4, 0},     {"int8:16", SALE_INT8, 16},
                                  {"int8:32", SALE_INT8, 32}, {"int8:64", SALE_INT8, 64}, {"int4:64", SALE_INT4, 64},
                                  {"fp4", SALE_FP4, 0},       {"fp4:64", SALE_FP4, 64},   {"fp8", SALE_FP8, 0},
                                  {"fp8:28", SALE_FP8, 28},   {"fp8:60", SALE_FP8, 60}};
constexpr int32_t head_dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256};
constexpr sale_dtype dtypes[] = {SALE_F32, SALE_F16, SALE_BF16};
constexpr sale_compute computes[] = {SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8, SALE_COMPUTE_FP8, SALE_COMPUTE_F16};

// Why not, or "" - for a problem of ordinary size, in host memory or on a device.
std::string why_not_for(int32_t backend, sale_dtype dtype, int32_t head_dim, const Estimate& e, sale_compute compute) {
  Problem problem(1, 8, 2, 4096, 4096, head_dim, dtype);
  Options options;
  options.compute(compute);
  const std::vector<float> projection(static_cast<size_t>(2 * head_dim * e.rank));
  if (e.rank == 0)
    options.estimator(e.format);
  else
    options.estimator(e.format, e.rank, projection, projection);
  const std::string why = why_not(backend, problem, options);
  return why.empty() ? why : why_not(backend, problem.device(0), options);
}

// The same as data: a row per backend, tensor type, products and estimate.
Json support_rows() {
  Json rows = Json::array();
  for (int32_t i = 0; i < sale_backend_count(); ++i)
    for (sale_dtype dtype : dtypes)
      for (sale_compute compute : computes)
        for (const Estimate& e : estimates) {
          Json dims = Json::array();
          for (int32_t d : head_dims)
            if (e.rank < d && why_not_for(i, dtype, d, e, compute).empty()) dims.push_back(d);
          rows.push_back({{"backend", sale_backend_name(i)},
                          {"tensors", name_of(dtype)},
                          {"products", name_of(compute)},
                          {"estimator", e.name},
                          {"head_dims", dims}});
        }
  return rows;
}

constexpr const char* nowhere = "–";
// Head dimensions that work, in words: "all", nowhere or the list.
std::string dims_of(int32_t backend, sale_dtype dtype, const Estimate& e, sale_compute compute) {
  std::string list;
  bool all = true;
  for (int32_t d : head_dims) {
    if (e.rank >= d) continue;  // not a reduced estimate there
    if (why_not_for(backend, dtype, d, e, compute).empty())
      list += (list.empty() ? "" : ", ") + std::to_string(d);
    else
      all = false;
  }
  return list.empty() ? nowhere : all ? "all" : list;
}

std::string support_table() {
  std::string text = "| backend | tensors | products |";
  for (const Estimate& e : estimates) text += fmt::format(" {} |", e.name);
  text += "\n|---|---|---|" + std::string(std::size(estimates) * 4, '-');
  for (size_t i = 0; i < std::size(estimates); ++i) text[text.size() - 4 * i - 1] = '|';
  text += "\n";
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i);
    std::vector<std::string> rows, cells;  // one row for all types and products when they do not differ
    std::vector<std::string> types, products;
    const auto note = [](std::vector<std::string>& all, const char* one) {
      if (std::find(all.begin(), all.end(), one) == all.end()) all.emplace_back(one);
    };
    for (sale_dtype dtype : dtypes)
      for (sale_compute compute : computes) {
        std::string row;
        bool any = false;
        for (const Estimate& e : estimates) {
          const std::string dims = dims_of(i, dtype, e, compute);
          row += fmt::format(" {} |", dims);
          any = any || dims != nowhere;
        }
        if (!any) continue;
        cells.push_back(row);
        note(types, name_of(dtype));
        note(products, name_of(compute));
        rows.push_back(fmt::format("| {} | {} | {} |{}\n", name, name_of(dtype), name_of(compute), row));
      }
    const bool same = !rows.empty() && rows.size() == types.size() * products.size() &&
                      std::all_of(cells.begin(), cells.end(), [&](const std::string& c) { return c == cells.front(); });
    if (same)
      rows = {
          fmt::format("| {} | {} | {} |{}\n", name, fmt::join(types, ", "), fmt::join(products, ", "), cells.front())};
    for (const std::string& row : rows) text += row;
  }
  text += fmt::format("\nCells: head dimensions that run, of {}", head_dims[0]);
  for (size_t i = 1; i < std::size(head_dims); ++i) text += fmt::format(", {}", head_dims[i]);
  return text + ".\n";
}

void show_info() {
  fmt::print("sale       {}\nmachine    {}\n", sale_version(), sale_machine());
  bool first = true;
  for (const BackendInfo& b : backends()) {
    fmt::print("{:<10} {:<10} {}\n{:<10} {:<10} {}\n", first ? "backends" : "", b.name, b.summary, "", "",
               b.why_not.empty() ? "usable" : "not usable: " + b.why_not);
    first = false;
  }
}

void write_info(const std::string& path) {
  Json j = json_head("info");
  j["backends"] = Json::array();
  for (const BackendInfo& b : backends())
    j["backends"].push_back({{"name", b.name},
                             {"summary", b.summary},
                             {"usable", b.why_not.empty()},
                             {"why_not", b.why_not},
                             {"on_device", b.facts.on_device != 0},
                             {"q_block", b.facts.q_block},
                             {"format", sale_format_name(b.facts.format)}});
  j["support"] = support_rows();
  write_json(path, j);
}

}  // namespace

void add_info(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("info", "This machine, the backends and why each can or cannot be used here");
  auto table = std::make_shared<bool>(false);
  auto json = std::make_shared<std::string>();
  command->add_flag("--table", *table, "the support table in Markdown instead, found by asking the library");
  command->add_option("--json", *json, "write both there");
  command->callback([=, &action] {
    action = [=] {
      if (*table)
        fmt::print("{}", support_table());
      else
        show_info();
      if (!json->empty()) write_info(*json);
      return int{good};
    };
  });
}

}  // namespace sale::cli
