// Trains the language model of examples/gpt.py in C++; with the same data and configuration, and in fp32 with
// bit-identical losses.
//
//     zeropage --num_gpus=2 --no_python build/dev/examples/cpp/train_gpt --config examples/ds_config.json
#include <zeropage/zeropage.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "gpt.h"
#include "text_data.h"

namespace {

constexpr const char* kUsage =
    "train_gpt --config FILE [--steps N] [--seed N] [--stage 0-3] [--checkpoint FOLDER] [--text FOLDER] [--result "
    "FILE]\n"
    "  --steps       optimizer steps (60)\n"
    "  --seed        seed of the model's initial values (1)\n"
    "  --stage       overrides the configuration's stage\n"
    "  --checkpoint  resumes from the newest step in this folder, and saves there at the end\n"
    "  --text        folder of Python sources to learn (Python's library)\n"
    "  --result      rank 0 writes losses and bytes here, as JSON\n";

/// "--name value" and "--name=value". Throws std::invalid_argument for anything else.
std::map<std::string, std::string> parse(int argc, char** argv) {
  std::map<std::string, std::string> options{{"config", "examples/ds_config.json"},
                                             {"steps", "60"},
                                             {"seed", "1"},
                                             {"stage", ""},
                                             {"checkpoint", ""},
                                             {"text", ""},
                                             {"result", ""},
                                             {"local_rank", ""}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto equals = word.find('=');
    const std::string name = word.rfind("--", 0) == 0 ? word.substr(2, equals - 2) : "";
    const bool has_value = equals != std::string::npos || i + 1 < argc;
    if (options.count(name) == 0 || !has_value) throw std::invalid_argument("cannot use " + word + "\n" + kUsage);
    options[name] = equals != std::string::npos ? word.substr(equals + 1) : argv[++i];
  }
  return options;
}

void write_result(const std::string& path, const std::vector<double>& losses, const zeropage::MemoryReport& memory) {
  std::ofstream out(path);
  out.precision(17);
  out << "{\"stage\": " << memory.stage << ", \"losses\": [";
  for (std::size_t i = 0; i < losses.size(); ++i) out << (i ? ", " : "") << losses[i];
  out << "], \"bytes\": [";
  for (std::size_t i = 0; i < memory.ranks.size(); ++i) {
    const auto& rank = memory.ranks[i];
    out << (i ? ", " : "") << "{\"parameters\": " << rank.parameters << ", \"gradients\": " << rank.gradients
        << ", \"optimizer\": " << rank.optimizer << ", \"frames\": " << rank.frames << ", \"buffers\": " << rank.buffers
        << "}";
  }
  out << "]}\n";
}

void train(std::map<std::string, std::string> options) {
  GptConfig shape;
  shape.seed = std::stoull(options["seed"]);
  Gpt model(shape);

  auto config = zeropage::Config::from_file(options["config"]);
  if (!options["stage"].empty()) config = config.with(R"({"zero_optimization": {"stage": )" + options["stage"] + "}}");
  auto engine = zeropage::initialize(*model, config);
  const std::string& checkpoint = options["checkpoint"];
  if (!checkpoint.empty()) engine.load_checkpoint(checkpoint);

  const LibraryText text(options["text"].empty() ? library_folder() : options["text"], shape.context);
  RankBatches batches(text, engine.train_micro_batch_size_per_gpu(), engine.global_rank(), engine.world_size());
  for (std::int64_t seen = 0; seen < engine.micro_steps(); ++seen) batches.next();
  const std::int64_t steps = std::stoll(options["steps"]);
  zeropage::ProgressLine line(engine, steps, "tokens", static_cast<double>(shape.context));
  std::vector<double> losses;

  while (engine.global_steps() < steps) {
    auto loss = model->forward(batches.next().to(engine.device()));
    engine.backward(loss);
    const bool boundary = engine.is_gradient_accumulation_boundary();
    engine.step();
    if (boundary) losses.push_back(engine.mean_loss());
    line.update();
  }
  line.finish();
  if (!checkpoint.empty()) engine.save_checkpoint(checkpoint);

  const auto memory = engine.memory_report();
  if (engine.global_rank() != 0 || losses.empty()) return;
  std::fprintf(stderr, "\nstage %d: loss %.4f at step 1, %.4f at step %zu\n\n%s\n", memory.stage, losses.front(),
               losses.back(), losses.size(), memory.table().c_str());
  if (!options["result"].empty()) write_result(options["result"], losses, memory);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    train(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_gpt: %s\n", error.what());
    return zeropage::exit_code(error);
  }
  return 0;
}
