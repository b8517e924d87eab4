/// \file
/// The section "zeropage": keys that DeepSpeed does not have.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

std::vector<Section> own_tables() {
  Section own{"zeropage", "Keys that DeepSpeed does not have."};
  own.keys = {
      integer("page_numel", 0, kSupported, "Elements of one page; 0: chosen from the size of the model.").at_least(0),
      integer("timeout_ms", 120'000, kSupported, "A rank that waits longer for another one fails, naming it.")
          .between(1, 604'800'000),
      string("communicator", "auto", kSupported,
             "How ranks communicate; auto: shared memory for CPU ranks on one host, else process groups (C++ programs "
             "under "
             "mpirun: MPI).")
          .one_of({{"auto"}, {"shared_memory"}, {"c10d"}, {"mpi"}}),
      flag("deterministic_reduction", true, kSupported,
           "Sum gradients over ranks in fp32 and in rank order with NCCL, too, so that results repeat bit for bit; "
           "false: "
           "NCCL computes the sums, in its own order and in the type that is sent (communication_data_type), and CPU "
           "ranks of several hosts sum on each host first."),
      flag("hierarchical_collectives", true, kSupported,
           "CPU ranks of several hosts gather and reduce on each host through shared memory, and send between hosts "
           "only the rest (docs/launcher.md); false: all ranks exchange with all."),
      integer("shard_ranks", 0, kSupported,
              "Hybrid sharding: state is divided over so many ranks with consecutive numbers, and every such group has "
              "all of it (docs/launcher.md). Only sums of gradients are sent between groups. On CPU ranks a "
              "divisor of the ranks of a host, on GPUs of all ranks; 0: all ranks are one group. Not with MPI.")
          .at_least(0),
      flag("observe_functions", true, kSupported,
           "Watch the first step for custom autograd functions that read parameters by raw pointer."),
      string("optimizer_state_dtype", {}, kSupported,
             "Type of the moments, which are rounded stochastically below fp32; int8: a byte per element and one per "
             "block of 256 (docs/offload.md).")
          .one_of({{"fp32"}, {"bf16", kSupported, {"bfloat16"}}, {"int8"}}),
      string("optimizer_sees", {}, kSupported,
             "The data on which the update of an element depends, for an optimizer object of the program: this "
             "element, its whole parameter, or all parameters of the model. The default follows from the class "
             "(docs/optimizers.md).")
          .one_of({{"elements"}, {"parameters"}, {"model"}}),
      integer("speculation_bytes", {}, kSupported,
              "Size per rank of the undo log for updates of offloaded optimizer state that overlap with the backward "
              "(docs/offload.md); 0: all updates wait for the norm. The default on a GPU is a quarter of what all "
              "updates would need, on a CPU 0.")
          .at_least(0),
      string("offloaded_update", "auto", kSupported,
             "Where optimizer state of offload_optimizer with the device \"cpu\" is updated: on the host, or on the "
             "device, with copies of each page to the device and back; auto: on the device, if kernels for that were "
             "built, "
             "pin_memory is true, speculation_bytes is not set and no parameters are on a drive (docs/offload.md).")
          .one_of({{"auto"}, {"host"}, {"device"}}),
      integer("max_consecutive_skips", 0, kSupported,
              "End the run after so many skipped steps in a row; 0: no such limit.")
          .at_least(0),
      flag("async_save", false, kSupported,
           "Checkpoints are written in the background from a copy in host memory. The memory of the copy is kept for "
           "the next "
           "one."),
      integer("keep_last", 0, kSupported,
              "Number of this run's newest checkpoints to keep in its folder; older ones are removed after a save; 0: "
              "keep all.")
          .at_least(0),
      flag("allow_fallback", false, kSupported,
           "If the newest checkpoint is damaged or missing, load the one before it, with a warning; every byte is read "
           "twice."),
      integer("replica_check_steps", 1000, kSupported,
              "Compare digests of the parameters that must be the same on all ranks every so many steps. The error "
              "names a rank with other values, for example after a memory error; 0: never.")
          .between(0, INT32_MAX),
      string("preemption_folder", "", kSupported,
             "After SIGTERM the run finishes the current step, saves a checkpoint to this folder, and ends with exit "
             "code 0."),
      real("preemption_grace_s", 25.0, kSupported,
           "Seconds after SIGTERM until a run that has not ended is ended with exit code 75; its older checkpoints "
           "remain.")
          .positive(),
      string("metrics_file", {}, kSupported,
             "File to which rank 0 appends the figures of every step, one line of JSON each; `zeropage report` draws "
             "them."),
  };
  Section trace{"zeropage.trace", "A timeline of some steps for ui.perfetto.dev (docs/monitoring.md)."};
  trace.keys = {
      string("file", {}, kSupported,
             "Path of the traces; rank 3 writes trace.rank3.json for trace.json. The variable ZEROPAGE_TRACE has "
             "priority."),
      integer("first_step", 3, kSupported, "First traced step, from 1.").at_least(1),
      integer("steps", 1, kSupported, "Traced steps.").between(1, 1'000'000),
  };
  return {std::move(own), std::move(trace)};
}

}  // namespace zeropage::config
