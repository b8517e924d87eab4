/// \file
/// For tests: a file system in memory that simulates the effects of power cuts.
///
/// Durable are the bytes of a file at its last sync, and the names of a directory at its last sync. Every later change
/// may be lost or not, independently of the others: of later writes to a file nothing, all, a part, or all except a
/// part remains; and each later change of names (a creation, a rename, a removal) happened or did not. File systems
/// with a journal guarantee more, because they keep an order.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "zeropage/base/digest.h"
#include "zeropage/base/error.h"
#include "zeropage/checkpoint/file_system.h"

namespace zeropage::checkpoint {

class MemoryFiles : public FileSystem {
 public:
  /// `before`: called before every operation that changes something, with the current file system.
  explicit MemoryFiles(std::function<void(const MemoryFiles&)> before = nullptr) : before_(std::move(before)) {
    nodes_.push_back({true, {}, {}, {}});
  }
  MemoryFiles(const MemoryFiles& other)
      : nodes_(other.nodes_), durable_names_(other.durable_names_), pending_(other.pending_) {}

  std::size_t pending_names() const { return pending_.size(); }

  /// The file system after a power cut. `kept`: for each pending change of names, whether it happened; `random` decides
  /// about the files.
  MemoryFiles after_power_cut(const std::vector<bool>& kept, std::mt19937& random) const {
    MemoryFiles cut;
    cut.nodes_ = nodes_;
    for (auto& node : cut.nodes_) node.names.clear();
    for (const auto& [directory, names] : durable_names_) cut.nodes_[directory].names = names;
    for (std::size_t i = 0; i < pending_.size(); ++i) {
      if (kept[i]) apply(cut.nodes_, pending_[i]);
    }
    for (auto& node : cut.nodes_) {
      node.content = surviving(node, random);
      node.durable = node.content;
    }
    for (std::size_t i = 0; i < cut.nodes_.size(); ++i) cut.durable_names_[i] = cut.nodes_[i].names;
    return cut;
  }

  /// Names and contents of all files and folders, as text: the same for the same tree.
  std::string tree(std::size_t node = 0) const {
    if (!nodes_[node].directory) return digest128(nodes_[node].content);
    std::string text = "{";
    for (const auto& [name, child] : nodes_[node].names) text += name + ":" + tree(child) + ",";
    return text + "}";
  }

  /// The bytes of a file, for tests that damage it.
  std::string& content(const std::string& path) { return nodes_[find(path)].content; }

  std::unique_ptr<WritableFile> create(const std::string& path, std::int64_t bytes) override {
    const auto guard = begin();
    return std::make_unique<Writer>(*this, add(path, {false, {}, {}, {}}));
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    const auto node = find(path);
    if (nodes_[node].directory) throw IoError("open " + path + ": it is not a regular file");
    return std::make_unique<Reader>(nodes_[node].content);
  }
  void make_directory(const std::string& path) override {
    const auto guard = begin();
    add(path, {true, {}, {}, {}});
  }
  void make_directories(const std::string& path) override {
    for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
      if (!exists(path.substr(0, at))) make_directory(path.substr(0, at));
    }
    if (!exists(path)) make_directory(path);
  }
  void sync_directory(const std::string& path) override {
    const auto guard = begin();
    const auto directory = find(path);
    durable_names_[directory] = nodes_[directory].names;
    const auto touches = [&](const Change& change) {
      return std::any_of(change.begin(), change.end(), [&](const Name& name) { return name.directory == directory; });
    };
    for (const auto& change : pending_) {  // a rename between directories is one change
      if (touches(change)) apply_durably(change);
    }
    pending_.erase(std::remove_if(pending_.begin(), pending_.end(), touches), pending_.end());
  }
  void rename(const std::string& from, const std::string& to) override {
    const auto guard = begin();
    const auto node = find(from);
    change({{parent(from), leaf(from), kNone}, {parent(to), leaf(to), node}});
  }
  void exchange(const std::string& a, const std::string& b) override {
    const auto guard = begin();
    const auto first = find(a), second = find(b);
    change({{parent(a), leaf(a), second}, {parent(b), leaf(b), first}});
  }
  void remove_all(const std::string& path) override {
    for (const auto& name : list(path)) remove_all(path + "/" + name);
    const auto guard = begin();
    change({{parent(path), leaf(path), kNone}});
  }
  bool exists(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    return lookup(path) != kNone;
  }
  std::vector<std::string> list(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    std::vector<std::string> names;
    const auto node = lookup(path);
    if (node == kNone) return names;
    for (const auto& [name, child] : nodes_[node].names) names.push_back(name);
    return names;
  }
  std::unique_ptr<DirectoryLock> try_lock(const std::string& path) override {
    return exists(path) ? std::make_unique<DirectoryLock>() : nullptr;  // the power cut ended the other holder
  }

  std::unique_ptr<FileLock> try_lock_file(const std::string& path, const std::string& about) override {
    return std::make_unique<FileLock>();
  }
  std::string full_path(const std::string& path) override { return path; }

 protected:
  /// False: syncs of files do nothing.
  virtual bool syncs_files() const { return true; }

 private:
  static constexpr std::size_t kNone = SIZE_MAX;
  static constexpr std::size_t kSectorBytes = 512;

  struct Node {
    bool directory;
    std::string content;  ///< of a file
    std::string durable;  ///< its content at the last sync
    std::map<std::string, std::size_t> names;
  };
  /// A change: `name` in `directory` is now `node`; kNone: it is removed.
  struct Name {
    std::size_t directory;
    std::string name;
    std::size_t node;
  };
  using Change = std::vector<Name>;

  struct Writer : WritableFile {
    Writer(MemoryFiles& owner, std::size_t node) : owner_(owner), node_(node) {}
    void append(const std::byte* data, std::int64_t bytes) override {
      const auto guard = owner_.begin();
      owner_.nodes_[node_].content.append(reinterpret_cast<const char*>(data), static_cast<std::size_t>(bytes));
    }
    void sync() override {
      const auto guard = owner_.begin();
      if (owner_.syncs_files()) owner_.nodes_[node_].durable = owner_.nodes_[node_].content;
    }
    void close() override {}
    MemoryFiles& owner_;
    std::size_t node_;
  };
  struct Reader : ReadableFile {
    explicit Reader(std::string content) : content_(std::move(content)) {}
    std::int64_t bytes() const override { return static_cast<std::int64_t>(content_.size()); }
    void read(std::int64_t offset, std::byte* out, std::int64_t bytes) const override {
      std::memcpy(out, content_.data() + offset, static_cast<std::size_t>(bytes));
    }
    std::string content_;
  };

  std::unique_lock<std::mutex> begin() {
    std::unique_lock guard(mutex_);
    if (before_) before_(*this);
    return guard;
  }
  static void apply(std::vector<Node>& nodes, const Change& change) {
    for (const auto& name : change) {
      if (name.node == kNone) {
        nodes[name.directory].names.erase(name.name);
      } else {
        nodes[name.directory].names[name.name] = name.node;
      }
    }
  }
  void apply_durably(const Change& change) {
    for (const auto& name : change) {
      if (name.node == kNone) {
        durable_names_[name.directory].erase(name.name);
      } else {
        durable_names_[name.directory][name.name] = name.node;
      }
    }
  }
  void change(Change change) {
    apply(nodes_, change);
    pending_.push_back(std::move(change));
  }
  static std::string surviving(const Node& node, std::mt19937& random) {
    if (node.content == node.durable) return node.content;
    std::string text = node.content;
    switch (random() % 4) {
      case 0: return node.durable;
      case 1: return text;
      case 2:  // the end is missing
        return text.substr(
            0, node.durable.size() + random() % (text.size() - node.durable.size()) / kSectorBytes * kSectorBytes);
      default: {  // a sector was never written
        const std::size_t sector = random() % (text.size() / kSectorBytes + 1) * kSectorBytes;
        if (sector < node.durable.size()) return text;
        for (std::size_t i = sector; i < std::min(text.size(), sector + kSectorBytes); ++i) text[i] = '\0';
        return text;
      }
    }
  }
  static std::string leaf(const std::string& path) { return path.substr(path.rfind('/') + 1); }
  std::size_t parent(const std::string& path) const { return find(path.substr(0, path.rfind('/'))); }
  std::size_t lookup(const std::string& path) const {
    std::size_t node = 0;
    for (std::size_t at = 0; at < path.size();) {
      const std::size_t end = std::min(path.find('/', at + 1), path.size());
      const auto found = nodes_[node].names.find(path.substr(at + 1, end - at - 1));
      if (found == nodes_[node].names.end()) return kNone;
      node = found->second;
      at = end;
    }
    return node;
  }
  std::size_t find(const std::string& path) const {
    const auto node = lookup(path);
    if (node == kNone) throw IoError("open " + path + ": No such file or directory");
    return node;
  }
  std::size_t add(const std::string& path, Node node) {
    if (lookup(path) != kNone) throw IoError("create " + path + ": File exists");
    const auto directory = parent(path);
    nodes_.push_back(std::move(node));
    change({{directory, leaf(path), nodes_.size() - 1}});
    return nodes_.size() - 1;
  }

  std::function<void(const MemoryFiles&)> before_;
  mutable std::mutex mutex_;
  std::vector<Node> nodes_;
  std::map<std::size_t, std::map<std::string, std::size_t>> durable_names_;
  std::vector<Change> pending_;
};

}  // namespace zeropage::checkpoint
