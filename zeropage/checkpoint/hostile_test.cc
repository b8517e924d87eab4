// Tests with malicious files.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "zeropage/base/mutations.h"
#include "zeropage/checkpoint/fuzz_targets.h"
#include "zeropage/checkpoint/test_checkpoint.h"
#include "zeropage/comm/testing/test_ranks.h"

namespace zeropage::checkpoint {
namespace {

// Catches input that crashes the program, is read out of bounds, or is accepted although it contradicts itself.
TEST(Hostile, MutatedManifestsAreAcceptedOrRefused) { drive_with_mutations("manifest", accepts_manifest); }
TEST(Hostile, MutatedShardHeadersAreAcceptedOrRefused) { drive_with_mutations("shard", accepts_shard); }

/// The error of opening and verifying a checkpoint in a child process, and the memory that this took.
struct Attack {
  std::string error;
  std::int64_t memory_bytes = 0;
};
Attack attack(const std::string& step) {
  const std::string report = step + ".report";
  if (const pid_t child = fork(); child == 0) {
    malloc_trim(0);
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    const auto error = comm::outcome_of([&] { Checkpoint(system_files(), step).verify(); });
    getrusage(RUSAGE_SELF, &after);
    std::ofstream(report) << (after.ru_maxrss - before.ru_maxrss) * 1024 << '\n' << error;
    _exit(0);
  } else {
    waitpid(child, nullptr, 0);
  }
  Attack result;
  std::ifstream in(report);
  in >> result.memory_bytes >> std::ws;
  result.error.assign(std::istreambuf_iterator<char>(in), {});
  return result;
}

void write_manifest(const std::string& step, const std::string& body) {
  std::ofstream(step + "/manifest.json") << "{\"digest\": \"" << digest128(body) << "\",\n" << body;
}

// Catches sizes that are used before they are compared with the file, links out of the folder, pipes that block, and
// JSON that needs many times its size in memory or the whole stack.
TEST(Hostile, FilesThatLieAreRefusedWithLittleMemory) {
  const TestFolder folder;
  const std::string step = save_alone(system_files(), folder.path(), "a", 1);
  const std::string manifest = step + "/manifest.json", shard = step + "/shard-00000-of-00001.safetensors";
  const std::string good = read_text(system_files(), manifest, kMaxManifestBytes);
  const std::string body = good.substr(good.find('\n') + 1);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = body;
    EXPECT_NE(text.find(from), std::string::npos) << from;
    return text.replace(text.find(from), from.size(), to);
  };
  const std::vector<std::string> bodies = {
      with("\"shape\":[700,3]", "\"shape\":[2305843009213693951]"),
      with("\"chunk_bytes\":4096", "\"chunk_bytes\":67108864"),
      with("\"world_size\":1", "\"world_size\":65536"),
      with("\"host\":{}", "\"host\":" + std::string(200'000, '[') + std::string(200'000, ']')),
      with("\"host\":{}", "\"host\":" + std::string(1'000'000, '[')),
      with("\"parameters\":[", "\"parameters\":[" + std::string(2'000'000, ' ') + "0,"),
      std::string(3'000'000, '{'),
  };
  constexpr std::int64_t kAllowanceBytes = std::int64_t{64} << 20;
  for (const auto& text : bodies) {
    write_manifest(step, text);
    const auto result = attack(step);
    EXPECT_TRUE(comm::contains(result.error, step)) << text.substr(0, 100) << ": " << result.error;
    EXPECT_LT(result.memory_bytes, 2 * static_cast<std::int64_t>(text.size()) + kAllowanceBytes) << text.substr(0, 100);
  }
  std::ofstream(manifest, std::ios::trunc) << good;
  EXPECT_EQ(attack(step).error, "");
  for (const auto& path : {manifest, shard}) {
    const std::string aside = folder.path() + "/aside";
    std::filesystem::rename(path, aside);
    std::filesystem::create_symlink(aside, path);
    EXPECT_TRUE(comm::contains(attack(step).error, "IoError")) << path;
    std::filesystem::remove(path);
    EXPECT_EQ(mkfifo(path.c_str(), 0600), 0);
    EXPECT_TRUE(comm::contains(attack(step).error, "not a regular file")) << path;
    std::filesystem::remove(path);
    std::filesystem::rename(aside, path);
  }
  std::filesystem::resize_file(shard, 5000);
  EXPECT_TRUE(comm::contains(attack(step).error, "has 5000 bytes; the manifest says")) << attack(step).error;
}

}  // namespace
}  // namespace zeropage::checkpoint
