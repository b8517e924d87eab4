"""Quantized gathers and reductions of two ranks with a device each: by our own kernels, and by torch's operators."""

from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from test_gpu_training import run_on_two_devices
from training import config_of, small_net, train_ranks

pytestmark = pytest.mark.gpu

RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "stage 3": (3, {}),
    "stage 3, bf16": (3, {"bf16": {"enabled": True}}),
    "stage 3, parameters on the host": (3, {"zero_optimization": {"offload_param": {"device": "cpu"}}}),
    "stage 2": (2, {}),
    "stage 1, bf16": (1, {"bf16": {"enabled": True}}),
}


def config_for(name: str) -> dict[str, Any]:
    """Quantized as far as the stage allows; pages small enough that several are sent at once."""
    stage, sections = RUNS[name]
    zero = {"zero_quantized_gradients": True, **sections.get("zero_optimization", {})}
    if stage == 3:
        zero |= {"zero_quantized_weights": True, "stage3_max_live_parameters": 9000}
    rest = {key: value for key, value in sections.items() if key != "zero_optimization"}
    return config_of(stage, clipping=0.0, zero_optimization=zero, zeropage={"page_numel": 4096}, **rest)


SCRIPT = """
    import sys; sys.path[:0] = {paths!r}
    import accelerator; accelerator.load_if_told()
    import simulated_device, torch; torch.set_num_threads(1)
    if simulated_device.is_loaded(): simulated_device.set_kernels({kernels})
    import zeropage
    from test_gpu_quantized import RUNS, config_for
    from training import small_net, train_engine

    rank = int(__import__("os").environ["RANK"])
    for index, name in enumerate(RUNS):
        engine, *_ = zeropage.initialize(model=accelerator.OnDevice(small_net(), accelerator.device(rank)), config=config_for(name))
        outcome = train_engine(engine, 2, rank, 3)
        torch.save((outcome.parameters.cpu(), outcome.losses), f"{folder}/{{rank}}-{{index}}.pt")
        engine.destroy()
    print("devices", engine.device, flush=True)
    accelerator.check()
"""


@pytest.mark.parametrize("gloo", [False, True])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "operators"])
def test_two_ranks_have_the_cpus_bits(kernels: bool, gloo: bool, tmp_path: Path):
    """Catches codes that are sent before a kernel has written them, values that are read before they are decoded,
    buffers that are freed too early, and bits that depend on the device."""
    run_on_two_devices(SCRIPT, tmp_path, gloo, kernels=kernels)
    for index, name in enumerate(RUNS):
        expected = train_ranks(small_net(), 2, config_for(name), 3, faults={"two_sided": True})
        for rank in range(2):
            parameters, losses = torch.load(tmp_path / f"{rank}-{index}.pt")
            if accelerator.SIMULATED and kernels:  # updates by operators have other bits
                assert torch.equal(parameters, expected[rank].parameters), name
                assert losses == expected[rank].losses, name
            else:
                assert (parameters - expected[rank].parameters).abs().max() < 2e-2, name
