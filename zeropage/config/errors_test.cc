/// Every file in errors/ is a configuration that must be refused at world size 2; its first line lists, separated by
/// " | ", what the message must contain. Would catch: an error that is accepted, a message without line, key or advice.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "zeropage/base/error.h"
#include "zeropage/config/config.h"

namespace zeropage::config {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<fs::path> error_files() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fs::path(__FILE__).parent_path() / "errors"))
    files.push_back(entry.path());
  return files;
}

std::vector<std::string> expected_parts(const std::string& text) {
  const std::string mark = "// expect: ";
  if (!text.starts_with(mark)) return {};
  std::string line = text.substr(mark.size(), text.find('\n') - mark.size());
  std::vector<std::string> parts;
  for (std::size_t bar; (bar = line.find(" | ")) != std::string::npos; line.erase(0, bar + 3)) {
    parts.push_back(line.substr(0, bar));
  }
  parts.push_back(line);
  return parts;
}

TEST(ConfigErrors, each_file_is_refused_with_its_message) {
  const std::vector<fs::path> files = error_files();
  EXPECT_GT(files.size(), 60u);
  for (const fs::path& path : files) {
    const std::string name = path.filename().string();
    const std::string text = read(path);
    const std::vector<std::string> parts = expected_parts(text);
    EXPECT_FALSE(parts.empty()) << name << " needs a first line // expect: ...";
    try {
      Config::from_json(text, 2, name);
      ADD_FAILURE() << name << " was accepted";
    } catch (const ConfigError& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with(name)) << message;
      for (const std::string& part : parts) {
        EXPECT_NE(message.find(part), std::string::npos)
            << name << "\n  expected: " << part << "\n  message: " << message;
      }
    }
  }
}

TEST(ConfigErrors, mutated_documents_give_a_configuration_or_a_config_error) {
  const std::string seed =
      R"({"train_batch_size": 8, "zero_optimization": {"stage": 2, "offload_param": null}, "fp16": {"enabled": true},
          "optimizer": {"type": "Adam", "params": {"betas": [0.9, 0.99]}}, "scheduler": {"type": "WarmupLR"}})";
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = seed;
    for (int edit = static_cast<int>(random() % 3) + 1; edit > 0; --edit) {
      text[random() % text.size()] = random() % 2 ? seed[random() % seed.size()] : static_cast<char>(random());
    }
    try {
      Config::from_json(text, 2);
      ++accepted;
    } catch (const ConfigError&) {
    }
  }
  EXPECT_GT(accepted, 20) << "some mutations (spaces, numbers) should be harmless";
}

TEST(ConfigErrors, files_that_cannot_be_read_are_io_errors) {
  EXPECT_THROW(Config::from_file("no/such/file.json", 1), IoError);
  EXPECT_THROW(Config::from_file(fs::temp_directory_path().string(), 1), IoError) << "a folder is not a file";
}

TEST(ConfigErrors, negative_world_size_is_refused) { EXPECT_THROW(Config::from_json("{}", -1), ConfigError); }

}  // namespace
}  // namespace zeropage::config
