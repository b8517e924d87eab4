/// \file
/// The section "zeropage": keys that DeepSpeed does not have.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

std::vector<Section> own_tables() {
  Section own{"zeropage", "Keys of Zeropage's own."};
  own.keys = {
      integer("page_numel", 0, kSupported, "Elements of one page; 0: chosen from the size of the model.").at_least(0),
      integer("timeout_ms", 120'000, kSupported, "A rank that waits longer for another one fails, naming it.")
          .between(1, 604'800'000),
      string("communicator", "auto", kSupported,
             "How ranks talk; auto: shared memory for CPU ranks on one host, else process groups (C++ programs under "
             "mpirun: MPI).")
          .one_of({{"auto"}, {"shared_memory"}, {"c10d"}, {"mpi"}}),
      flag("deterministic_reduction", true, kSupported,
           "Sum gradients over ranks in fp32 and in rank order with NCCL, too, so that results repeat bit for bit; "
           "false: "
           "NCCL sums, in an order of its own and in the type that travels (communication_data_type), and CPU ranks of "
           "several hosts sum on each host first."),
      flag("hierarchical_collectives", true, kSupported,
           "CPU ranks of several hosts gather and reduce on each host through shared memory, and send between hosts "
           "what that cannot spare (docs/launcher.md); false: all ranks exchange with all."),
      flag("observe_functions", true, kSupported,
           "Watch the first step for custom autograd functions that read parameters by raw pointer."),
      string("optimizer_state_dtype", {}, kSupported,
             "Type of the moments, which are rounded stochastically below fp32; int8: a byte per element and one per "
             "block of 256 (docs/offload.md).")
          .one_of({{"fp32"}, {"bf16", kSupported, {"bfloat16"}}, {"int8"}}),
      string("optimizer_sees", {}, kSupported,
             "What the step of the program's optimizer object looks at to update an element: that element, all of its "
             "parameter, or all parameters of the model; by default it follows from its class (docs/optimizers.md).")
          .one_of({{"elements"}, {"parameters"}, {"model"}}),
      integer("speculation_bytes", {}, kSupported,
              "Undo log per rank with which updates of offloaded optimizer state go on overlapped with the backward "
              "(docs/offload.md); 0: all wait for the norm. By default a quarter of what all of them would need on a "
              "GPU, 0 on a CPU.")
          .at_least(0),
      string("offloaded_update", "auto", kSupported,
             "Where optimizer state of offload_optimizer with the device \"cpu\" is updated: on the host, or on the "
             "device, where pages of it are copied to and back; auto: on the device, if kernels for that were built, "
             "pin_memory is true and speculation_bytes is not set (docs/offload.md).")
          .one_of({{"auto"}, {"host"}, {"device"}}),
      integer("max_consecutive_skips", 0, kSupported,
              "End the run after so many skipped steps in a row; 0: no such limit.")
          .at_least(0),
      flag("async_save", false, kSupported,
           "Checkpoints are written while training goes on, from a copy in host memory, which is kept for the next "
           "one."),
      integer("keep_last", 0, kSupported,
              "After a save remove all but so many of this run's newest checkpoints in its folder; 0: keep all.")
          .at_least(0),
      flag("allow_fallback", false, kSupported,
           "Where the newest checkpoint is damaged or missing load the one before it, with a warning; every byte "
           "is read twice."),
      integer(
          "replica_check_steps", 1000, kSupported,
          "Compare digests of the parameters that ranks hold alike after every so many steps: a rank whose memory lost "
          "a bit, or that alone was written to, is named; 0: never.")
          .between(0, INT32_MAX),
      string("preemption_folder", "", kSupported,
             "SIGTERM ends the run after the step under way: a checkpoint goes into this folder, the exit code is 0."),
      real(
          "preemption_grace_s", 25.0, kSupported,
          "A run that has not ended so long after SIGTERM ends at once with exit code 75; its older checkpoints stand.")
          .positive(),
      string("metrics_file", {}, kSupported,
             "Append every step's figures here, a line of JSON each, by rank 0; `zeropage report` draws them."),
  };
  Section trace{"zeropage.trace", "A timeline of some steps for ui.perfetto.dev (docs/monitoring.md)."};
  trace.keys = {
      string("file", {}, kSupported,
             "Path of the traces; rank 3 writes trace.rank3.json for trace.json. The variable ZEROPAGE_TRACE goes "
             "before."),
      integer("first_step", 3, kSupported, "First traced step, from 1.").at_least(1),
      integer("steps", 1, kSupported, "Traced steps.").between(1, 1'000'000),
  };
  return {std::move(own), std::move(trace)};
}

}  // namespace zeropage::config
