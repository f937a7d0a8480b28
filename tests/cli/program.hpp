// Runs the program and keeps what it said.
#pragma once

#include <sys/wait.h>

#include <gtest/gtest.h>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

namespace sale_test {

using Json = nlohmann::json;

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A folder of this test's own, gone afterwards.
class Folder {
public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "sale_cli_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

private:
  std::filesystem::path path_;
};

struct Said {
  int code = -1;
  std::string out, err;
  bool says(const std::string& words) const { return out.find(words) != std::string::npos; }
};

// From the source folder, as `make demo` does.
inline Said sale(const std::string& arguments, const std::string& environment = "",
                 const std::string& printed_to = "") {
  const Folder folder;
  const std::string out = printed_to.empty() ? folder / "out" : printed_to;
  const std::string command = "cd '" SALE_SOURCE "' && " + environment + " '" SALE_PROGRAM "' " + arguments + " >'" +
                              out + "' 2>'" + folder / "err" + "'";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, printed_to.empty() ? contents(out) : "",
          contents(folder / "err")};
}

// A failure: this code, nothing but one line that holds these words.
inline void refused(const std::string& arguments, int code, const std::string& words) {
  const Said s = sale(arguments);
  EXPECT_EQ(s.code, code) << arguments << ": " << s.err;
  EXPECT_NE(s.err.find(words), std::string::npos) << arguments << ": '" << s.err << "' should say '" << words << "'";
  EXPECT_EQ(std::count(s.err.begin(), s.err.end(), '\n'), 1) << arguments << ": " << s.err;
  EXPECT_EQ(s.err.rfind("sale: ", 0), 0u) << s.err;
}

inline Json json_at(const std::string& path, const std::string& command) {
  const Json j = Json::parse(contents(path));
  EXPECT_EQ(j.at("schema"), 1);
  EXPECT_EQ(j.at("command"), command);
  EXPECT_FALSE(j.at("machine").get<std::string>().empty());
  return j;
}

}  // namespace sale_test
