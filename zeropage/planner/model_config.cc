#include "zeropage/planner/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "zeropage/base/checked.h"
#include "zeropage/base/error.h"
#include "zeropage/base/json_text.h"
#include "zeropage/planner/files.h"

namespace zeropage::planner {
namespace {

constexpr std::int64_t kMeasureMax = 1'000'000'000;  // of any number in the file

std::int64_t product(std::int64_t a, std::int64_t b) { return checked_mul(a, b, "parameters of the model"); }

/// Reads keys of the document; every error names file, line and key.
class Document {
 public:
  Document(const json::Node& root, const std::string& origin) : root_(root), origin_(origin) {}

  std::int64_t integer(const std::string& key) const {
    const std::optional<std::int64_t> value = optional(key);
    if (!value) fail(root_.line, key, "expected a number, the key is missing");
    return *value;
  }

  std::int64_t integer(const std::string& key, std::int64_t otherwise) const {
    return optional(key).value_or(otherwise);
  }

  bool flag(const std::string& key, bool otherwise) const {
    const json::Member* member = find(key);
    if (!member) return otherwise;
    if (member->value.kind != json::Kind::kBool)
      fail(member->line, key, "expected true or false, got " + json::describe(member->value));
    return member->value.boolean;
  }

  std::string text(const std::string& key) const {
    const json::Member* member = find(key);
    if (!member) fail(root_.line, key, "expected a string, the key is missing; is this the config.json of a model?");
    if (member->value.kind != json::Kind::kString)
      fail(member->line, key, "expected a string, got " + json::describe(member->value));
    return member->value.text;
  }

  [[noreturn]] void fail(int line, const std::string& key, const std::string& what) const {
    throw ConfigError(fmt::format("{}:{}: {}: {}", origin_, line, key, what));
  }

 private:
  /// Null counts as absent.
  const json::Member* find(const std::string& key) const {
    const auto found = std::ranges::find(root_.members, key, &json::Member::name);
    return found == root_.members.end() || found->value.kind == json::Kind::kNull ? nullptr : &*found;
  }

  std::optional<std::int64_t> optional(const std::string& key) const {
    const json::Member* member = find(key);
    if (!member) return std::nullopt;
    const std::optional<std::int64_t> value = member->value.integer;
    if (!value || *value < 1 || *value > kMeasureMax) {
      fail(member->line, key,
           fmt::format("expected an integer from 1 to {}, got {}", kMeasureMax, json::describe(member->value)));
    }
    return value;
  }

  const json::Node& root_;
  const std::string& origin_;
};

/// The differences between the families that are built like Llama.
struct LlamaFamily {
  bool qkv_bias = false;
  bool query_key_norm = false;
  const char* experts_key = nullptr;       ///< number of experts per layer
  const char* expert_width_key = nullptr;  ///< width of one expert
};

/// Gated MLP, grouped-query attention, two RMS norms a layer (Touvron et al., arXiv 2302.13971; experts: 2401.04088).
void add_llama(const Document& document, const LlamaFamily& family, Model& model) {
  const std::int64_t hidden = model.shape.hidden = document.integer("hidden_size");
  const std::int64_t layers = model.shape.layers = document.integer("num_hidden_layers");
  const std::int64_t vocabulary = model.shape.vocabulary = document.integer("vocab_size");
  const std::int64_t heads = document.integer("num_attention_heads");
  const std::int64_t head_dim = document.integer("head_dim", std::max<std::int64_t>(1, hidden / heads));
  const std::int64_t query = product(heads, head_dim);
  const std::int64_t key = product(document.integer("num_key_value_heads", heads), head_dim);
  const bool bias = document.flag("attention_bias", family.qkv_bias);
  const std::int64_t experts = family.experts_key ? document.integer(family.experts_key) : 1;
  const std::int64_t width = document.integer(family.expert_width_key ? family.expert_width_key : "intermediate_size");

  const bool tied = document.flag("tie_word_embeddings", false);
  add_parameters(model, product(vocabulary, hidden), tied ? 1 : 2);
  add_matrices(model, product(hidden, query), 2 * layers);  // query and output
  add_matrices(model, product(hidden, key), 2 * layers);    // key and value
  if (bias) {
    add_parameters(model, query, layers);
    add_parameters(model, key, 2 * layers);
    if (!family.qkv_bias) add_parameters(model, hidden, layers);
  }
  if (family.query_key_norm) add_parameters(model, head_dim, 2 * layers);
  add_matrices(model, product(hidden, width), product(3 * layers, experts));
  if (family.experts_key) add_matrices(model, product(hidden, experts), layers);
  add_parameters(model, hidden, 2 * layers + 1);

  model.active_numel = model.total_numel;
  if (family.experts_key) {
    if (document.integer("decoder_sparse_step", 1) != 1) {
      document.fail(1, "decoder_sparse_step", "expected 1, experts in every layer; give the safetensors files instead");
    }
    const std::int64_t idle = experts - std::min(experts, document.integer("num_experts_per_tok"));
    model.active_numel -= 3 * layers * idle * hidden * width;
  }
}

/// GPT-2: learned positions, tied head, biases everywhere.
void add_gpt2(const Document& document, Model& model) {
  const std::int64_t hidden = model.shape.hidden = document.integer("n_embd");
  const std::int64_t layers = model.shape.layers = document.integer("n_layer");
  const std::int64_t vocabulary = model.shape.vocabulary = document.integer("vocab_size");
  const std::int64_t width = document.integer("n_inner", 4 * hidden);
  add_matrices(model, product(vocabulary, hidden));  // wte, like wpe: no "embed" in its name
  if (!document.flag("tie_word_embeddings", true)) add_parameters(model, product(vocabulary, hidden));
  add_matrices(model, product(document.integer("n_positions"), hidden));
  add_matrices(model, product(hidden, 3 * hidden), layers);
  add_parameters(model, 3 * hidden, layers);
  add_matrices(model, product(hidden, hidden), layers);
  add_matrices(model, product(hidden, width), 2 * layers);
  add_parameters(model, width, layers);
  add_parameters(model, hidden, 2 * layers);      // biases of both projections back to the residual stream
  add_parameters(model, hidden, 4 * layers + 2);  // layer norms
  model.active_numel = model.total_numel;
}

/// GPT-NeoX (Black et al., arXiv 2204.06745): rotary positions, head of its own without bias.
void add_gpt_neox(const Document& document, Model& model) {
  const std::int64_t hidden = model.shape.hidden = document.integer("hidden_size");
  const std::int64_t layers = model.shape.layers = document.integer("num_hidden_layers");
  const std::int64_t vocabulary = model.shape.vocabulary = document.integer("vocab_size");
  const std::int64_t width = document.integer("intermediate_size");
  add_parameters(model, product(vocabulary, hidden), document.flag("tie_word_embeddings", false) ? 1 : 2);
  add_matrices(model, product(hidden, 3 * hidden), layers);
  add_matrices(model, product(hidden, hidden), layers);
  if (document.flag("attention_bias", true)) {
    add_parameters(model, 3 * hidden, layers);
    add_parameters(model, hidden, layers);
  }
  add_matrices(model, product(hidden, width), 2 * layers);
  add_parameters(model, width, layers);
  add_parameters(model, hidden, layers);
  add_parameters(model, hidden, 4 * layers + 2);
  model.active_numel = model.total_numel;
}

using Family = std::function<void(const Document&, Model&)>;

const std::map<std::string, Family>& families() {
  const auto llama = [](LlamaFamily family) -> Family {
    return [family](const Document& document, Model& model) { add_llama(document, family, model); };
  };
  static const std::map<std::string, Family> all{
      {"llama", llama({})},
      {"mistral", llama({})},
      {"phi3", llama({})},
      {"qwen2", llama({.qkv_bias = true})},
      {"qwen3", llama({.query_key_norm = true})},
      {"mixtral", llama({.experts_key = "num_local_experts"})},
      {"qwen3_moe",
       llama({.query_key_norm = true, .experts_key = "num_experts", .expert_width_key = "moe_intermediate_size"})},
      {"gpt2", add_gpt2},
      {"gpt_neox", add_gpt_neox},
  };
  return all;
}

}  // namespace

Model parse_model_config(const std::string& text, const std::string& name, const std::string& origin) {
  const json::Node root = json::parse(text, origin);
  const Document document(root, origin);
  if (root.kind != json::Kind::kObject) {
    throw ConfigError(
        fmt::format("{}:{}: expected the config.json of a model, got {}", origin, root.line, json::describe(root)));
  }
  const std::string type = document.text("model_type");
  const auto family = families().find(type);
  if (family == families().end()) {
    std::string known;
    for (const auto& [known_type, add] : families()) known += (known.empty() ? "" : ", ") + known_type;
    document.fail(
        root.line, "model_type",
        fmt::format("expected one of {}, got {}: give the number of parameters or the safetensors files instead", known,
                    json::quote(type)));
  }
  Model model;
  model.name = name;
  family->second(document, model);
  model.shape.guessed = false;
  return model;
}

Model read_model_config(const std::filesystem::path& path) {
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path().filename();
  const std::string name = path.filename() == "config.json" ? folder.string() : path.filename().string();
  return parse_model_config(read_file(path, json::kMaxDocumentBytes), name, path.string());
}

}  // namespace zeropage::planner
