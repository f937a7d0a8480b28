// sale demo: the bundled model reads most of a book it has never seen, twice, and is asked about what was hidden in it.
#include "command.hpp"
#include "run_options.hpp"

namespace sale::cli {

void add_demo(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("demo",
                                             "The bundled model on 64K tokens of a book with numbers hidden in it, "
                                             "dense and with SALE; exit 1 on a wrong answer");
  auto a = std::make_shared<RunArguments>();
  a->prompt.text = default_text;
  a->report = "build/demo";
  a->compare = a->measure = a->answers_decide = true;
  add_run_options(*command, *a);
  command->add_option("--report", a->report, "folder for report.html and report.json")->capture_default_str();
  command->callback([a, &action] { action = [a] { return run_and_report(*a, "demo"); }; });
}

}  // namespace sale::cli
