/// \file
/// The sections aio, checkpoint and activation_checkpointing.
#include "zeropage/config/tables.h"

namespace zeropage::config {

using enum Status;

namespace {

Section checkpoint_writer() {
  Section writer{"checkpoint.writer", "How a checkpoint is written."};
  writer.keys = {
      string("type", "FAST", kAccepted, "There is one writer. \"MOCK\", which writes nothing, is refused.")
          .one_of({{"FAST"}, {"PYTHON"}, {"MOCK", kNotBuilt}}),
      flag("decoupled", false, kNotBuilt, "Write in the background: use zeropage.async_save for that."),
      integer("io_buffer_size", 67'108'864, kAccepted, "The writer chooses its buffers.").at_least(1),
      flag("io_buffer_double", true, kAccepted, "The writer chooses its buffers."),
      flag("show_statistics", false, kAccepted, "A save prints no figures."),
      string("data_parallel", {}, kAccepted, "Each rank writes what it owns.")
          .one_of({{"replica"}, {"socket"}, {"machine"}}),
      integer("io_multiplier", 1, kAccepted, "Each rank has one writer.").at_least(1),
  };
  return writer;
}

}  // namespace

std::vector<Section> storage_tables() {
  Section aio{"aio", "Asynchronous I/O for offload to NVMe."};
  aio.keys = {
      integer("block_size", 1'048'576, kSupported,
              "Bytes of one request, rounded up to 4 KiB; zeropage io-bench finds the best.")
          .at_least(1),
      integer("queue_depth", 8, kSupported, "Requests that run at the same time on each drive.").between(1, 1024),
      integer("intra_op_parallelism", 1, kAccepted,
              "Threads of one transfer; a single thread can run any number of requests.")
          .at_least(1)
          .also_named({"thread_count"}),
      flag("single_submit", false, kAccepted,
           "Submit requests one by one; they are submitted together where possible."),
      flag("overlap_events", true, kAccepted, "Submit and complete at the same time; this is always the case."),
      flag("use_gds", false, kNotBuilt, "GPUDirect Storage."),
  };
  Section checkpoint{"checkpoint", "Saving and loading."};
  checkpoint.keys = {
      string("tag_validation", "Warn", kAccepted, "Ranks that save under different tags are an error in any case.")
          .one_of({{"Warn"}, {"Ignore"}, {"Fail"}}),
      flag("load_universal", false, kAccepted, "Every checkpoint loads at any world size and stage."),
      flag("use_node_local_storage", false, kNotBuilt, "Every host saves to its own disk."),
      flag("checkpoint_serialization", true, kAccepted, "Tensors are written as they are in memory, without pickles."),
  };
  Section parallel_write{"checkpoint.parallel_write", "Several ranks write at the same time."};
  parallel_write.keys = {flag("pipeline_stage", false, kAccepted, "Each rank always writes what it owns.")};
  Section activation{
      "activation_checkpointing",
      "How `checkpointing.checkpoint` of the Python package works; torch.utils.checkpoint works at every stage."};
  activation.keys = {
      flag("partition_activations", false, kAccepted,
           "Ranks do not share activations, so there is nothing to partition."),
      integer("number_checkpoints", {}, kAccepted, "Only for the buffer of contiguous_memory_optimization.")
          .at_least(1),
      flag("contiguous_memory_optimization", false, kAccepted, "torch allocates saved activations."),
      flag("synchronize_checkpoint_boundary", false, kSupported,
           "Wait for the device at the start and end of each checkpoint."),
      flag("profile", false, kSupported, "Each checkpoint is a range \"checkpoint\" in torch's profiles."),
      flag("cpu_checkpointing", false, kSupported,
           "Inputs of checkpointed functions are kept in host memory until the backward needs them."),
  };
  return {std::move(aio), std::move(checkpoint), std::move(parallel_write), checkpoint_writer(), std::move(activation)};
}

}  // namespace zeropage::config
