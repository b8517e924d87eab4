#include "zeropage/engine/engine.h"

// Included here: the casters of tensors need torch's configuration.
#include <set>

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "python/bind/bind.h"
#include "zeropage/engine/agreement.h"
#include "zeropage/engine/data_types.h"
#include "zeropage/report/memory_table.h"

namespace zeropage::python {
namespace {

using engine::Engine;

/// (name, tensor, group index or -1)
using ParameterTuple = std::tuple<std::string, at::Tensor, int>;

/// Parameters named in `in_fp32` stay fp32; parameters named in `whole` reach the optimizer unsharded.
std::vector<engine::ParameterInput> inputs_of(std::vector<ParameterTuple> parameters,
                                              const std::set<std::string>& in_fp32,
                                              const std::set<std::string>& whole) {
  std::vector<engine::ParameterInput> inputs;
  inputs.reserve(parameters.size());
  for (auto& [name, tensor, group] : parameters) {
    const bool keep_fp32 = in_fp32.contains(name);
    const bool needs_whole = whole.contains(name);
    inputs.push_back({std::move(name), std::move(tensor), group, keep_fp32, needs_whole});
  }
  return inputs;
}

std::unique_ptr<Engine> make_engine(std::vector<ParameterTuple> parameters, std::vector<config::OptimizerParams> groups,
                                    const config::Config& config, std::shared_ptr<comm::Communicator> communicator,
                                    c10::Device device, std::shared_ptr<comm::Communicator> reductions,
                                    std::shared_ptr<comm::Communicator> saves, const std::set<std::string>& in_fp32,
                                    const std::set<std::string>& whole) {
  auto inputs = inputs_of(std::move(parameters), in_fp32, whole);
  // Not a guard of py::init, which would register the instance in pybind's table without the lock.
  py::gil_scoped_release unlocked;
  return std::make_unique<Engine>(std::move(inputs), std::move(groups), config, std::move(communicator), device,
                                  std::move(reductions), std::move(saves));
}

/// (names of parameters that are fp32 whatever the precision, a warning or None)
std::pair<std::set<std::string>, std::optional<std::string>> settle_types(
    config::Config& config, const std::vector<std::pair<std::string, at::Tensor>>& parameters,
    const std::vector<std::string>& declared, bool added) {
  std::vector<engine::ParameterInput> inputs;
  for (const auto& [name, tensor] : parameters) inputs.push_back({name, tensor});
  std::optional<std::string> warning;
  if (added) {
    engine::settle_added_types(config, declared, inputs);
  } else {
    warning = engine::settle_types(config, declared, inputs);
  }
  std::set<std::string> kept;
  for (const auto& input : inputs) {
    if (input.keep_fp32) kept.insert(input.name);
  }
  return {std::move(kept), std::move(warning)};
}

/// {"parameters": (bytes now, peak bytes), ...}
std::map<std::string, std::pair<std::int64_t, std::int64_t>> measured_bytes(const Engine& engine, bool host) {
  const Tier tier = host ? Tier::kHost : Tier::kDevice;
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> out;
  for (int i = 0; i < kMemoryKinds; ++i) {
    const auto kind = static_cast<MemoryKind>(i);
    const Ledger& ledger = *engine.ledger();
    out.emplace(memory_kind_name(kind), std::pair(ledger.current_bytes(kind, tier), ledger.peak_bytes(kind, tier)));
  }
  return out;
}

std::map<std::string, double> span_seconds(const Engine& engine) {
  std::map<std::string, double> out;
  const auto timeline = engine.timeline();
  if (!timeline) return out;
  const auto totals = timeline->totals();
  for (int i = 0; i < kSpanKinds; ++i) {
    out[span_kind_name(static_cast<SpanKind>(i))] = static_cast<double>(totals[i].ns) / 1e9;
  }
  return out;
}

std::string transfer_table(const Engine& engine) {
  const auto timeline = engine.timeline();
  return timeline ? format_transfers(timeline->transfers()) : "";
}

/// (parameter, values, gradient)
using SegmentTuple = std::tuple<int, at::Tensor, at::Tensor>;
using Update = std::function<void(const std::vector<SegmentTuple>&)>;

std::vector<SegmentTuple> tuples_of(const std::vector<engine::ClientSegment>& segments) {
  std::vector<SegmentTuple> tuples;
  for (const auto& segment : segments) tuples.emplace_back(segment.parameter, segment.values, segment.gradient);
  return tuples;
}

bool step(Engine& engine, const Update& update) {
  if (!update) return engine.step();
  return engine.step([&](const std::vector<engine::ClientSegment>& segments) { update(tuples_of(segments)); });
}

std::vector<std::tuple<int, std::int64_t, std::int64_t>> owned_segments(const Engine& engine) {
  std::vector<std::tuple<int, std::int64_t, std::int64_t>> segments;
  for (const auto& segment : engine.owned_segments()) {
    segments.emplace_back(segment.parameter, segment.offset, segment.numel);
  }
  return segments;
}

void bind_values(py::module_& module) {
  py::class_<engine::StepResult>(module, "StepResult", "What the last step did.")
      .def_readonly("applied", &engine::StepResult::applied)
      .def_readonly("overflow", &engine::StepResult::overflow)
      .def_readonly("gradient_norm", &engine::StepResult::gradient_norm)
      .def_readonly("clip_coefficient", &engine::StepResult::clip_coefficient)
      .def_readonly("overflow_parameter", &engine::StepResult::overflow_parameter)
      .def_readonly("pages_ahead", &engine::StepResult::pages_ahead)
      .def_readonly("undone", &engine::StepResult::undone);
  py::class_<formula::StateBytes>(module, "StateBytes", "Bytes of model state of one rank.")
      .def_readonly("parameters", &formula::StateBytes::parameters)
      .def_readonly("gradients", &formula::StateBytes::gradients)
      .def_readwrite("optimizer", &formula::StateBytes::optimizer,
                     "Writable, to add the state of an optimizer of PyTorch.");
  py::class_<paging::PagerStats>(module, "PagerStats", "Counters of the pager.")
      .def_readonly("touches", &paging::PagerStats::touches)
      .def_readonly("faults", &paging::PagerStats::faults)
      .def_readonly("prefetches", &paging::PagerStats::prefetches)
      .def_readonly("evictions", &paging::PagerStats::evictions)
      .def_readonly("write_backs", &paging::PagerStats::write_backs)
      .def_readonly("gathered_bytes", &paging::PagerStats::gathered_bytes)
      .def_readonly("live_bytes", &paging::PagerStats::live_bytes)
      .def_readonly("peak_live_bytes", &paging::PagerStats::peak_live_bytes);
}

void bind_training(py::class_<Engine>& engine) {
  engine.def("before_forward", &Engine::before_forward, "Adopts parameters that were replaced from outside.")
      .def(
          "backward",
          [](Engine& self, const at::Tensor& loss, bool retain_graph, bool scale_by_accumulation) {
            return self.backward(loss, {retain_graph, scale_by_accumulation});
          },
          py::arg("loss"), py::arg("retain_graph"), py::arg("scale_by_accumulation"), Unlocked(),
          "Runs the backward of a scalar loss; returns the loss divided by the accumulation steps.")
      .def("scale", &Engine::scale, py::arg("loss"), "The loss times the loss scale, for its own backward().")
      .def("step", &step, py::arg("update") = py::none(), Unlocked(),
           "Ends a micro step; True when it was an accumulation boundary. `update` is the step of a torch optimizer; "
           "with another optimizer it is called before the update.")
      .def(
          "begin_edit", [](Engine& self) { return tuples_of(self.begin_edit()); }, Unlocked(),
          "(parameter, values, None) of the segments that this rank updates, to be changed in place.")
      .def("end_edit", &Engine::end_edit, py::arg("failure"), Unlocked(),
           "Collective. Puts the changed values into effect.")
      .def("owned_segments", &owned_segments,
           "(parameter, first element, elements) of the segments that this rank updates.")
      .def("zero_grad", &Engine::zero_grad, Unlocked(), "Drops gradients accumulated so far.")
      .def("is_accumulation_boundary", &Engine::is_accumulation_boundary)
      .def("set_accumulation_boundary", &Engine::set_accumulation_boundary, py::arg("boundary"),
           "None: decided by counting micro steps again.")
      .def_property("accumulation_steps", &Engine::accumulation_steps, &Engine::set_accumulation_steps)
      .def_property_readonly("window_is_new", &Engine::window_is_new)
      .def_property("micro_batch_size", &Engine::micro_batch_size, &Engine::set_micro_batch_size,
                    "Samples of one rank in a micro step.")
      .def_property("train_batch_size", &Engine::train_batch_size, &Engine::set_train_batch_size,
                    "Samples of all ranks in an update; assigning changes the accumulation steps.")
      .def_property(
          "groups", [](Engine& self) { return self.groups(); },
          [](Engine& self, const std::vector<config::OptimizerParams>& groups) { self.groups() = groups; },
          "Current hyperparameters, one entry per group; a copy: assign it to change them.")
      .def("scheduled_lrs", &Engine::scheduled_lrs, "Rates of the next step by the configured schedule.")
      .def_property("schedule_iteration", &Engine::schedule_iteration, &Engine::set_schedule_iteration);
}

}  // namespace

void init_engine(py::module_& module) {
  bind_values(module);
  module.def("settle_types", &settle_types, py::arg("config"), py::arg("parameters"), py::arg("declared"),
             py::arg("added") = false,
             "Decides which parameters stay fp32, and sets the config's precision if it has none. Raises ConfigError.");
  module.def(
      "require_same_everywhere", &engine::require_same_everywhere, py::arg("communicator"), py::arg("text"), Unlocked(),
      "Collective. Compares a string of one fact per line over the ranks. Raises PeerError with the first difference.");
  py::class_<Engine> engine(module, "Engine", "Places a model's state on ranks; runs backward and step.");
  engine
      .def(py::init(&make_engine), py::arg("parameters"), py::arg("groups"), py::arg("config"), py::arg("communicator"),
           py::arg("device"), py::arg("reductions") = py::none(), py::arg("saves") = py::none(),
           py::arg("in_fp32") = std::set<std::string>{}, py::arg("whole") = std::set<std::string>{})
      .def_property_readonly("loss_scale", &Engine::loss_scale)
      .def_property_readonly("global_steps", &Engine::global_steps)
      .def_property_readonly("skipped_steps", &Engine::skipped_steps)
      .def_property_readonly("micro_steps", &Engine::micro_steps)
      .def_property_readonly("global_samples", &Engine::global_samples)
      .def_property_readonly("last_step", &Engine::last_step, py::return_value_policy::copy)
      .def("gather", &Engine::gather, py::arg("parameters"), Unlocked(), "Makes parameters resident; returns a ticket.")
      .def(
          "add_parameters",
          [](Engine& self, std::vector<ParameterTuple> parameters, const std::vector<config::OptimizerParams>& groups,
             const std::set<std::string>& in_fp32, const std::set<std::string>& whole) {
            const auto inputs = inputs_of(std::move(parameters), in_fp32, whole);
            py::gil_scoped_release unlocked;
            self.add_parameters(inputs, groups);
          },
          py::arg("parameters"), py::arg("groups"), py::arg("in_fp32"), py::arg("whole"),
          "More parameters, as given when the engine was made; all groups.")
      .def("drop_tensor", &Engine::drop_tensor, py::arg("parameter"), Unlocked(),
           "Gives up a parameter's tensor; see swap_tensors.")
      .def("set_tensor", &Engine::set_tensor, py::arg("parameter"), py::arg("tensor"), Unlocked(),
           "Adopts the tensor that replaces it.")
      .def("release", &Engine::release, py::arg("ticket"), py::arg("modifier_rank"), Unlocked(), "Ends a gather.")
      .def(
          "offload_states",
          [](Engine& self, bool optimizer, bool gradients, bool parameters, bool pin_memory) {
            self.offload_states({optimizer, gradients, parameters}, pin_memory);
          },
          py::arg("optimizer"), py::arg("gradients"), py::arg("parameters"), py::arg("pin_memory"), Unlocked(),
          "Moves state to the host until reload_states.")
      .def("keep_parameters_only", &Engine::keep_parameters_only, Unlocked(),
           "Frees all state except the parameters, which can be read, written and taken over. Only gather and release "
           "may "
           "follow.")
      .def("reload_states", &Engine::reload_states, Unlocked(), "Moves it back.")
      .def(
          "wait_for_device", [](const Engine& self, const std::string& what) { self.wait_for_device(what); },
          py::arg("what"), Unlocked(),
          "Waits for the earlier work of the current stream. Call it before a value is fetched, so that the message of "
          "an error has `what` it was.")
      .def("wait_for_updates", &Engine::wait_for_updates, Unlocked(),
           "Waits for updates overlapped with the backward; for tests.")
      .def("trim_memory", &Engine::trim_memory, Unlocked(), "Returns cached memory to the system.")
      .def("measured_bytes", &measured_bytes, py::arg("host") = false,
           "Per kind: bytes now and at the peak, counted by the ledger; on the device, or offloaded to the "
           "host.")
      .def(
          "held_memory", [](const Engine& self) { return report::format_held_memory(*self.ledger()); },
          "The state that the engine has now, by kind, as text.")
      .def_property_readonly("pager_stats", &Engine::pager_stats)
      .def(
          "disk_traffic",
          [](const Engine& self) {
            const auto traffic = self.disk_traffic();
            return std::tuple(traffic.read_bytes, traffic.written_bytes, traffic.waiting_s);
          },
          "Bytes read and written by this rank so far, and the seconds it waited for them.")
      .def("span_seconds", &span_seconds, "Host seconds by kind of span, so far; empty without observation.")
      .def("transfer_table", &transfer_table,
           "Collectives by operation and size as a table; empty without observation.")
      .def(
          "formula_bytes", [](const Engine& self) { return self.formula_bytes().device; },
          "Model state per rank by the formula, for this configuration, on the device.")
      .def(
          "formula_host_bytes", [](const Engine& self) { return self.formula_bytes().offloaded; },
          "The same for offloaded state.")
      .def("formula_bytes_at_stage", &Engine::formula_bytes_at_stage, py::arg("stage"))
      .def_property_readonly("trainable_numel", &Engine::trainable_numel)
      .def_property_readonly("page_count", &Engine::page_count);
  bind_training(engine);
}

}  // namespace zeropage::python
