// sale mask: the kept blocks of a head as a picture, of a problem line or of a model's prompt.
#include "arguments.hpp"
#include "lab/problem_lines.hpp"
#include "lab/text.hpp"
#include "run_options.hpp"

namespace sale::cli {
namespace {

struct Arguments {
  std::vector<std::string> words;
  std::string out = "mask.png", json;
  int head = 0, layer = 0, cells = 512;
  RunArguments model;  // used when the words are empty
};

void save(const Arguments& a, const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys) {
  const std::string extension = std::filesystem::path(a.out).extension().string();
  write_text(a.out, extension == ".svg" ? svg_of(grid, marks, keys) : png_of(grid, marks, keys, a.cells));
  fmt::print("picture: {}\n", a.out);
}

void show(const Arguments& a, const std::string& what, const std::vector<double>& densities, int layers, int heads) {
  fmt::print("{}\n{:<8}", what, "layer");
  for (int h = 0; h < heads; ++h) fmt::print(" {:>8}", fmt::format("head {}", h));
  for (int l = 0; l < layers; ++l) {
    fmt::print("\n{:<8}", l);
    for (int h = 0; h < heads; ++h) fmt::print(" {:>6.1f} %", 100 * densities[static_cast<size_t>(l * heads + h)]);
  }
  fmt::print("\n");
  if (a.json.empty()) return;
  Json j = json_head("mask");
  j["of"] = what, j["layers"] = layers, j["heads"] = heads, j["density_of_heads"] = densities, j["picture"] = a.out;
  write_json(a.json, j);
}

int of_line(const Arguments& a) {
  sale_case::Instance in(sale_case::parse(joined(a.words)));
  if (a.head >= in.c.q_heads) refuse("--head: {} is not in 0 .. {}", a.head, in.c.q_heads - 1);
  if (a.layer != 0) refuse("--layer: a problem line has one layer");
  const std::string backend = backend_for(in, a.model.sparse.backend);
  const PlacedCase at(in, backend);
  CasePlan plan(at.problem(), in.layer, in.options, backend);
  const Blocks blocks = blocks_for(plan), all = blocks_for(plan);  // new lists hold what is visible
  plan.select(at.call(), blocks.get());

  const sale_case::Sequence& s = in.sequences.front();
  std::vector<double> densities;
  KeptGrid picture;
  for (int32_t h = 0; h < in.c.q_heads; ++h) {
    KeptGrid grid(s.q_len, s.k_len, a.cells);
    const int64_t q_block = sale_plan_q_block(plan.get());
    for (int64_t tile = 0; tile * q_block < s.q_len; ++tile)
      grid.add(tile * q_block, row_of(blocks.get(), {0, h, tile}).kept, row_of(all.get(), {0, h, tile}).kept);
    densities.push_back(grid.density());
    if (h == a.head) picture = std::move(grid);
  }
  show(a, sale_case::print(in.c), densities, 1, in.c.q_heads);
  save(a, picture, {}, s.k_len);
  return good;
}

int of_model(Arguments& a) {
  RunArguments& r = a.model;
  LoadedModel m = load_model(r.model, r.sparse.threads);
  const lm::Config& config = m.model.config();
  if (a.layer >= config.layers) refuse("--layer: {} is not in 0 .. {}", a.layer, config.layers - 1);
  if (a.head >= config.q_heads) refuse("--head: {} is not in 0 .. {}", a.head, config.q_heads - 1);
  r.sparse.calibration = calibration_for(r.sparse.calibration, r.model, r.sparse.backend);
  Sparse sparse;
  resolve(r.sparse, m.identity, sparse);
  const Task task = make_task(r.prompt, m, r.model);
  const auto tokens = static_cast<int64_t>(task.context.size());
  lm::KVCache cache(config, tokens);
  Pictures pictures(config, tokens, a.cells);
  Task prefill{task.context, {}, task.new_tokens};
  SessionOptions options;
  options.label = "SALE";
  options.quiet = r.quiet;
  options.prefill_watcher = &pictures;
  const Outcome outcome = run_task(m, prefill, cache, sparse.settings, options);
  std::vector<double> densities;
  for (size_t h = 0; h < outcome.totals.heads.size(); ++h) densities.push_back(outcome.totals.density(h));
  show(a, fmt::format("{}, {} tokens", m.identity.name, grouped(tokens)), densities, static_cast<int>(config.layers),
       config.q_heads);
  std::vector<KeyMark> marks;
  for (const Question& q : task.questions)
    if (q.fact) marks.push_back({q.fact->begin, q.fact->end});
  save(a, pictures.head(static_cast<size_t>(a.layer * config.q_heads + a.head)), marks, tokens);
  return good;
}

}  // namespace

void add_mask(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "mask", "Draw the kept blocks of a head: of a problem line, or of a model's prompt with --model");
  auto a = std::make_shared<Arguments>();
  a->model.prompt.text = default_text;
  a->model.prompt.usual = "16k";
  command->add_option("problem", a->words, "problem line; without one, the prompt of a model");
  command->add_option("--out", a->out, "picture to write, .png or .svg")->capture_default_str();
  command->add_option("--head", a->head, "query head")->check(CLI::Range(0, 65535))->capture_default_str();
  command->add_option("--layer", a->layer, "layer, with --model")->check(CLI::Range(0, 4095))->capture_default_str();
  command->add_option("--cells", a->cells, "most pixels across")->check(CLI::Range(1, 8192))->capture_default_str();
  command->add_option("--json", a->json, "write densities there");
  command->add_option("--model", a->model.model, "model folder")->capture_default_str();
  command->add_option("--tokens", a->model.prompt.tokens, "length of the model's prompt (default: 16k)");
  command->add_option("--text", a->model.prompt.text, "book the prompt is made of")->capture_default_str();
  command->add_option("--prompt-file", a->model.prompt.prompt_files, "text to prefill instead")->take_all();
  command->add_option("--build", a->model.prompt.build, "prompt to build")
      ->check(CLI::IsMember({"needles", "passkey", "json"}))
      ->capture_default_str();
  command->add_flag("--quiet", a->model.quiet, "no progress on stderr");
  add_sparse_options(*command, a->model.sparse, "calibration.json in the model's folder, if there is one");
  command->callback([a, &action] {
    action = [a] {
      const std::string extension = std::filesystem::path(a->out).extension().string();
      if (extension != ".png" && extension != ".svg") refuse("--out: {} ends neither in .png nor in .svg", a->out);
      return a->words.empty() ? of_model(*a) : of_line(*a);
    };
  });
}

}  // namespace sale::cli
