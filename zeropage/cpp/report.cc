#include "zeropage/cpp/report.h"

#include <array>
#include <utility>

#include "zeropage/cpp/engine_impl.h"
#include "zeropage/report/memory_table.h"
#include "zeropage/session/memory_report.h"

namespace zeropage {
namespace {

MemoryBytes from_formula(const formula::StateBytes& bytes) {
  return {bytes.parameters, bytes.gradients, bytes.optimizer, 0, 0};
}
formula::StateBytes to_formula(const MemoryBytes& bytes) {
  return {bytes.parameters, bytes.gradients, bytes.optimizer};
}

std::vector<report::RankBytes> to_rows(const std::vector<MemoryBytes>& ranks) {
  std::vector<report::RankBytes> rows;
  for (const auto& rank : ranks) {
    rows.push_back({rank.parameters, rank.gradients, rank.optimizer, rank.frames, rank.buffers});
  }
  return rows;
}

std::vector<MemoryBytes> from_rows(const std::vector<report::RankBytes>& rows) {
  std::vector<MemoryBytes> ranks;
  for (const auto& bytes : rows) ranks.push_back({bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]});
  return ranks;
}

}  // namespace

std::string MemoryReport::table() const {
  report::MemoryTable table;
  table.stage = stage;
  table.ranks = to_rows(ranks);
  table.host = to_rows(host);
  table.formula = {to_formula(formula), to_formula(formula_host)};
  table.formula_stage_0 = to_formula(formula_stage_0);
  return report::format_memory_table(table);
}

MemoryReport Engine::memory_report() const {
  MemoryReport out;
  out.stage = zero_optimization_stage();
  const std::array<std::int64_t, 2> nothing = {0, 0};
  const auto ranks = session::gather_memory(*impl_->core, *impl_->communicator,
                                            impl_->client ? impl_->client->bytes_on(impl_->device) : nothing);
  out.ranks = from_rows(ranks.device);
  out.host = from_rows(ranks.host);
  out.formula = from_formula(impl_->core->formula_bytes().device);
  out.formula_host = from_formula(impl_->core->formula_bytes().offloaded);
  out.formula_stage_0 = from_formula(impl_->core->formula_bytes_at_stage(0));
  return out;
}

DiskTraffic Engine::disk_traffic() const {
  const auto traffic = impl_->core->disk_traffic();
  return {traffic.read_bytes, traffic.written_bytes, traffic.waiting_s};
}

report::ProgressSample progress_sample(const Engine& engine, double units_per_sample) {
  report::ProgressSample sample;
  sample.step = engine.global_steps();
  sample.loss = engine.mean_loss();
  sample.learning_rate = engine.has_optimizer() ? engine.get_lr().front() : 0.0;
  sample.units = units_per_sample * static_cast<double>(engine.train_batch_size());
  if (engine.fp16_enabled()) sample.loss_scale = engine.loss_scale();
  const auto traffic = engine.disk_traffic();
  sample.disk_bytes = traffic.read_bytes + traffic.written_bytes;
  sample.disk_wait_s = traffic.waited_s;
  return sample;
}

class ProgressLine::Impl {
 public:
  Impl(const Engine& engine, std::int64_t total_steps, std::string unit, double units_per_sample)
      : engine_(engine), units_per_sample_(units_per_sample), shown_(engine.global_steps()) {
    if (engine.global_rank() == 0) line_.emplace(report::Progress::on_stderr(total_steps, std::move(unit)));
  }

  void update() {
    if (!line_ || engine_.global_steps() == shown_) return;
    shown_ = engine_.global_steps();
    line_->update(progress_sample(engine_, units_per_sample_));
  }

  void finish() {
    if (line_) line_->finish();
    line_.reset();
  }

 private:
  const Engine& engine_;
  double units_per_sample_;
  std::int64_t shown_;
  std::optional<report::Progress> line_;
};

ProgressLine::ProgressLine(const Engine& engine, std::int64_t total_steps, std::string unit, double units_per_sample)
    : impl_(std::make_unique<Impl>(engine, total_steps, std::move(unit), units_per_sample)) {}
ProgressLine::ProgressLine(ProgressLine&&) noexcept = default;
ProgressLine::~ProgressLine() {
  if (impl_) impl_->finish();
}
void ProgressLine::update() { impl_->update(); }
void ProgressLine::finish() { impl_->finish(); }

}  // namespace zeropage
