// The program `sale`: subcommands, and one line for every failure.
#include <fmt/format.h>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "case/case.hpp"
#include "command.hpp"
#include "lm/error.hpp"

namespace {

using namespace sale::cli;

constexpr const char* footer =
    "Exit codes: 0 good, 1 a check failed, 2 bad usage or input, 3 not supported on this machine, 4 internal error.\n"
    "Documentation of the method and its numbers: docs/.";

int fail(int code, const char* message) {
  std::fflush(stdout);
  fmt::print(stderr, "sale: {}\n", message);
  return code;
}

int code_of(sale_status status) {
  return status == SALE_UNSUPPORTED ? unsupported : status == SALE_INVALID_ARGUMENT ? bad_input : internal_error;
}

int perform(const Action& action) {
  try {
    return action();
  } catch (const sale::Error& e) {
    return fail(code_of(e.status()), e.what());
  } catch (const InputError& e) {
    return fail(bad_input, e.what());
  } catch (const sale::lm::Error& e) {
    return fail(bad_input, e.what());
  } catch (const sale_case::Error& e) {
    return fail(bad_input, e.what());
  } catch (const std::bad_alloc&) {
    return fail(internal_error, "out of memory");
  } catch (const std::exception& e) {
    return fail(internal_error, e.what());
  }
}

// What was printed must have arrived: a full disk is not a success.
int finish(int code) {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (flushed && std::ferror(stdout) == 0) return code;
  const char* why = errno != 0 ? std::strerror(errno) : "an error while writing";
  fmt::print(stderr, "sale: standard output: cannot be written: {}\n", why);
  return code == good ? bad_input : code;
}

// Of every option that is a number. Ranges let NaN through, which is neither below nor above.
void refuse_what_is_not_finite(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_type_name().rfind("FLOAT", 0) != 0) continue;
    for (const std::string& given : option->results())
      if (!std::isfinite(std::strtod(given.c_str(), nullptr)))
        throw CLI::ValidationError(option->get_name(), fmt::format("'{}' is not a finite number", given));
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App program{"Sparse attention by low-bit estimation for long prompts: run it, measure it, check it."};
  program.name("sale");
  program.require_subcommand(1);
  program.set_version_flag("--version", std::string("sale ") + sale_version());
  program.option_defaults()->group("Options");
  Action action;
  for (auto* add : {add_demo, add_run, add_info, add_check, add_bench, add_explain, add_mask, add_project,
                    add_calibrate, add_perplexity, add_replay, add_eval, add_audit, add_adopt})
    add(program, action);
  for (CLI::App* command : program.get_subcommands([](CLI::App*) { return true; }))
    command->footer(command->get_footer().empty() ? footer : command->get_footer() + footer);
  program.footer(footer);  // after them: they would inherit it
  try {
    program.parse(argc, argv);
    for (const CLI::App* command : program.get_subcommands()) refuse_what_is_not_finite(*command);
  } catch (const CLI::Success& e) {
    return finish(program.exit(e) == 0 ? good : bad_input);  // --help, --version
  } catch (const CLI::ParseError& e) {
    const auto named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
    if (argc > 1 && argv[1][0] != '-' && static_cast<const CLI::App&>(program).get_subcommands(named).empty())
      return fail(bad_input, fmt::format("'{}' is not a subcommand; sale --help lists them", argv[1]).c_str());
    return fail(bad_input, e.what());
  }
  return finish(perform(action));
}
