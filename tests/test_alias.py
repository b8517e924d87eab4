"""The package `deepspeed` of the alias: the names that other libraries import exist, and features that are not built
raise an error with a reason. One process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zeropage import alias

# As Accelerate, transformers, PEFT, TRL, Lightning and DeepSpeed's own examples import them.
NAMES = """
deepspeed: initialize init_distributed add_config_arguments DeepSpeedEngine __version__ zero comm utils ops runtime checkpointing
deepspeed: dist log_dist logger DeepSpeedConfigError
deepspeed: init_inference tp_model_init PipelineModule OnDevice get_accelerator DeepSpeedConfig moe pipe add_tuning_arguments
deepspeed.accelerator: get_accelerator
deepspeed.checkpoint.utils: clone_tensors_for_torch_save
deepspeed.checkpointing: configure checkpoint is_configured reset model_parallel_cuda_manual_seed
deepspeed.comm: init_distributed is_initialized get_rank get_world_size get_local_rank all_reduce all_gather all_gather_into_tensor
deepspeed.comm: reduce_scatter_tensor broadcast broadcast_object_list barrier monitored_barrier new_group ReduceOp send recv isend irecv
deepspeed.comm: gather scatter reduce all_to_all all_to_all_single all_reduce_coalesced inference_all_reduce get_world_group log_summary
deepspeed.comm: destroy_process_group initialize_mesh_device
deepspeed.launcher.runner: DEEPSPEED_ENVIRONMENT_NAME
deepspeed.moe.layer: MoE
deepspeed.ops.adagrad: DeepSpeedCPUAdagrad
deepspeed.ops.adam: DeepSpeedCPUAdam FusedAdam
deepspeed.git_version_info: version torch_info
deepspeed.ops: __compatible_ops__
deepspeed.ops.aio: AsyncIOBuilder
deepspeed.ops.lamb: FusedLamb
deepspeed.ops.lion: DeepSpeedCPULion FusedLion
deepspeed.ops.op_builder: CPUAdamBuilder FusedAdamBuilder AsyncIOBuilder UtilsBuilder
deepspeed.pipe: PipelineModule LayerSpec TiedLayerSpec
deepspeed.profiling.flops_profiler: FlopsProfiler
deepspeed.runtime.activation_checkpointing.checkpointing: checkpoint
deepspeed.runtime.base_optimizer: DeepSpeedOptimizer
deepspeed.runtime.config: DeepSpeedConfig
deepspeed.runtime.bf16_optimizer: BF16_Optimizer
deepspeed.runtime.config_utils: dict_raise_error_on_duplicate_keys
deepspeed.runtime.engine: DeepSpeedEngine
deepspeed.runtime.fp16.fused_optimizer: FP16_Optimizer
deepspeed.runtime.zero.parameter_offload: DeepSpeedZeRoOffload
deepspeed.runtime.lr_schedules: VALID_LR_SCHEDULES WARMUP_LR WARMUP_DECAY_LR WARMUP_COSINE_LR ONE_CYCLE LR_RANGE_TEST TOTAL_NUM_STEPS
deepspeed.runtime.lr_schedules: LRRangeTest OneCycle WarmupLR WarmupDecayLR WarmupCosineLR WARMUP_TYPE WARMUP_LOG_RATE CYCLE_MIN_LR
deepspeed.runtime.sequence_parallel.ulysses_sp: UlyssesSPAttentionHF UlyssesSPDataLoaderAdapter
deepspeed.runtime.utils: see_memory_usage set_random_seed ensure_directory_exists
deepspeed.runtime.zero.config: ZeroStageEnum
deepspeed.runtime.zero.offload_config: OffloadDeviceEnum OffloadStateTypeEnum
deepspeed.runtime.zero.partition_parameters: ZeroParamStatus Init GatheredParameters zero_wrapper_for_fp_tensor_constructor _orig_torch_arange
deepspeed.runtime.zero.stage3: estimate_zero3_model_states_mem_needs_all_live DeepSpeedZeroOptimizer_Stage3
deepspeed.runtime.zero.stage_1_and_2: estimate_zero2_model_states_mem_needs_all_live
deepspeed.utils: logger log_dist groups RepeatingLoader OnDevice instrument_w_nvtx set_z3_leaf_modules unset_z3_leaf_modules
deepspeed.utils: get_z3_leaf_modules z3_leaf_module set_z3_leaf_module set_z3_leaf_modules_by_name set_z3_leaf_modules_by_suffix logging
deepspeed.utils: safe_get_full_fp32_param safe_get_full_grad safe_get_full_optimizer_state safe_set_full_fp32_param safe_set_full_grad
deepspeed.utils: safe_set_full_optimizer_state safe_get_local_fp32_param safe_get_local_grad safe_get_local_optimizer_state
deepspeed.utils: safe_set_local_fp32_param safe_set_local_grad safe_set_local_optimizer_state safe_update_full_grad_vectorized
deepspeed.utils.tensor_fragment: safe_get_full_fp32_param safe_set_full_grad safe_get_local_grad
deepspeed.utils.torch: required_torch_version
deepspeed.utils.groups: _get_sequence_parallel_group _get_data_parallel_group _get_data_parallel_world_size
deepspeed.utils.logging: logger log_dist
deepspeed.utils.zero_to_fp32: get_fp32_state_dict_from_zero_checkpoint convert_zero_checkpoint_to_fp32_state_dict load_state_dict_from_zero_checkpoint
deepspeed.zero: Init GatheredParameters register_external_parameter unregister_external_parameter ZeroParamStatus TiledLinear MiCS_Init
"""


def run(program: str, folder: Path) -> str:
    alias.write_metadata(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(alias.FOLDER)])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_exists(tmp_path: Path):
    """Catches a name that a library imports and this package lost, as a module or by attribute after `import deepspeed`
    alone."""
    lines = [line.split(": ") for line in NAMES.strip().splitlines()]
    program = "".join(f"from {module} import {', '.join(names.split())}\n" for module, names in lines)
    program += "import deepspeed\n" + "".join(f"{module}.{name}\n" for module, names in lines for name in names.split())
    run(program, tmp_path)


def test_features_that_are_not_built_raise_an_error(tmp_path: Path):
    """Catches names that are accepted and do nothing, and a name that does not exist and is found."""
    names = [
        "PipelineModule",
        "init_inference",
        "tp_model_init",
        "moe.layer.MoE",
        "zero.TiledLinear",
        "zero.MiCS_Init",
        "add_tuning_arguments",
    ]
    program = f"import deepspeed, operator\nfor name in {names}:\n"
    program += "    try: operator.attrgetter(name)(deepspeed)(1, key=2)\n    except deepspeed.errors.ConfigError as error: print(error)\n"
    program += "try: deepspeed.runtime.zero.no_such_name\nexcept AttributeError as error: print(error)\n"
    messages = run(program, tmp_path).splitlines()
    assert len(messages) == len(names) + 1, messages
    for name, line in zip(names, messages, strict=False):
        assert line.startswith(f"deepspeed.{name.split('.')[-1]} is not available in this version: ")
    assert "no attribute 'no_such_name': this `deepspeed` is zeropage's" in messages[-1]


def test_versions_and_builders_answer(tmp_path: Path):
    """Catches an answer about versions, extensions or duplicate keys that makes a program choose the wrong way."""
    program = "import deepspeed, json\nfrom deepspeed.utils.torch import required_torch_version as r\n"
    program += "assert r(min_version=2.1) and not r(max_version='2.1') and r(min_version='1.13.1') and not r(min_version='99')\n"
    program += "b = deepspeed.ops.op_builder.CPUAdamBuilder\n"
    program += (
        "assert deepspeed.ops.__compatible_ops__[b.NAME] and not deepspeed.ops.__compatible_ops__['no_such_op']\n"
    )
    program += 'try: json.loads(\'{"a": 1, "a": 2}\', object_pairs_hook=deepspeed.runtime.config_utils.dict_raise_error_on_duplicate_keys)\n'
    program += "except ValueError as error: print(error)\n"
    assert run(program, tmp_path).startswith("duplicate keys: a")


def test_importing_it_is_cheap(tmp_path: Path):
    """Catches modules that are imported before they are used: the alias may take at most 0.05 s more than zeropage."""
    program = "import time, zeropage\nimport zeropage.engine, sys\nbegin = time.perf_counter()\nimport deepspeed\nprint(time.perf_counter() - begin)\n"
    program += (
        "assert not [m for m in sys.modules if m.startswith('deepspeed.') and m != 'deepspeed._names'], sys.modules\n"
    )
    assert min(float(run(program, tmp_path)) for _ in range(3)) < 0.05


def test_other_programs_do_not_see_it():
    """Catches an alias that is on the import path although nobody has installed it."""
    done = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('deepspeed'))"],
        capture_output=True,
        text=True,
    )
    if alias.active() != "":
        pytest.fail(
            "a package deepspeed is installed in the Python that runs the tests: python -m zeropage alias remove"
        )
    assert done.stdout.strip() == "None"
