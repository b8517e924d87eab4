"""Hybrid sharding (zeropage.shard_ranks): state is divided over the ranks of a group, and every group has all of it.

The oracle is sharding over all ranks, whose sums have the same order, so results have the same bits; and plain PyTorch
in one process.
"""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import config_of, flat_parameters, part_of_batch, small_net, token_batch, train_plain, train_ranks

import zeropage
from zeropage.errors import ConfigError, PeerError
from zeropage.testing import run_ranks

STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
SHAPES = pytest.mark.parametrize(("world", "shard_ranks"), [(4, 2), (6, 3), (6, 2)])
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2}},
}
STEPS = 4
Loop = Callable[[Any, int], Any]  # gets an engine and its rank


def config(stage: int, shard_ranks: int = 0, *, batch: int = 12, **sections: Any) -> dict[str, Any]:
    """Pages of about 10,000 elements, so that the model has several. 12 samples, for 2, 3, 4 or 6 ranks."""
    own = {"page_numel": 10_000, "shard_ranks": shard_ranks, **sections.pop("zeropage", {})}
    return config_of(stage, batch=batch, zeropage=own, **sections)


def micro_steps(engine: Any, rank: int, steps: range, world: int = 4) -> list[float]:
    """The losses of whole updates."""
    accumulation = engine.gradient_accumulation_steps()
    losses = []
    for step in steps:
        for micro in range(accumulation):
            batch = part_of_batch(token_batch(step, size=12 * accumulation), world, rank, micro, accumulation)
            loss = engine(*batch)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
    return losses


def run(
    settings: dict[str, Any], loop: Loop | None = None, world: int = 4, model: torch.nn.Module | None = None
) -> list[Any]:
    """Every rank's result of `loop` (default: losses and norm of STEPS updates), and its parameters at the end."""
    model = small_net() if model is None else model

    def default(engine: Any, rank: int) -> Any:
        return micro_steps(engine, rank, range(STEPS), world), engine.get_global_grad_norm()

    def of_rank(rank: int, communicator: Any) -> tuple[Any, torch.Tensor]:
        engine, *_ = zeropage.initialize(model=copy.deepcopy(model), config=settings)
        return (loop or default)(engine, rank), flat_parameters(engine.module)

    return run_ranks(world, of_rank, shard_ranks=settings["zeropage"]["shard_ranks"])


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for rank, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert mine[0] == theirs[0], f"rank {rank} saw other results"
        assert torch.equal(mine[1], theirs[1]), f"rank {rank} ended with other parameters"


@functools.cache
def over_all_ranks(world: int, stage: int, precision: str) -> list[Any]:
    return run(config(stage, **PRECISIONS[precision]), world=world)


@STAGES
@SHAPES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_groups_train_as_all_ranks_together(stage: int, world: int, shard_ranks: int, precision: str):
    """Catches sums over a group only or in another order, means over the group, norms that count every replica, and
    pages that are gathered from another group."""
    hybrid = run(config(stage, shard_ranks, **PRECISIONS[precision]), world=world)
    for (mine, parameters), (theirs, expected) in zip(hybrid, over_all_ranks(world, stage, precision), strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], rel=1e-12)  # norms are added shard by shard
        assert torch.equal(parameters, expected)


@STAGES
def test_groups_train_as_plain_pytorch(stage: int):
    """Catches what sharding over all ranks gets wrong in the same way."""
    model = small_net()
    settings = config_of(stage, zeropage={"shard_ranks": 2, "page_numel": 5000})
    outcomes = train_ranks(model, 4, settings, STEPS, faults={"shard_ranks": 2})
    assert (outcomes[0].parameters - train_plain(model, STEPS)).abs().max() < 1e-5


CPU = {"device": "cpu"}
SECTIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"batch": 36, "accumulation": 3},
    "accumulation in bf16": {"batch": 36, "accumulation": 3, **PRECISIONS["bf16"]},
    "no clipping": {"clipping": 0.0},
    "reduce_scatter false": {"zero_optimization": {"reduce_scatter": False}},
    "overlap_comm false": {"zero_optimization": {"overlap_comm": False}},
    "optimizer on the host": {"zero_optimization": {"offload_optimizer": CPU}},
    "speculation": {"zero_optimization": {"offload_optimizer": CPU}, "zeropage": {"speculation_bytes": 10**7}},
    "bf16 moments": {**PRECISIONS["bf16"], "zeropage": {"optimizer_state_dtype": "bf16"}},
    "fp16": PRECISIONS["fp16"],
    "sums": {"gradient_allreduce_op": "sum"},
}


@STAGES
@pytest.mark.parametrize("name", SECTIONS)
def test_options_change_no_bit_of_it(stage: int, name: str):
    """Catches options whose reductions, sums or divisors are those of the group."""
    assert_same_but_norms(run(config(stage, 2, **SECTIONS[name])), run(config(stage, **SECTIONS[name])))


def assert_same_but_norms(found: list[Any], expected: list[Any]) -> None:
    for (mine, parameters), (theirs, parameters_there) in zip(found, expected, strict=True):
        assert mine[0] == theirs[0] and mine[1] == pytest.approx(theirs[1], rel=1e-12)
        assert torch.equal(parameters, parameters_there)


STAGE_3_SECTIONS: dict[str, dict[str, Any]] = {
    "little is live": {"zero_optimization": {"stage3_max_live_parameters": 1}},
    "parameters on the host": {"zero_optimization": {"offload_param": CPU, "offload_optimizer": CPU}},
    "persistent parameters": {"zero_optimization": {"stage3_param_persistence_threshold": 1000}},
}


@pytest.mark.parametrize("name", STAGE_3_SECTIONS)
def test_options_of_stage_3(name: str):
    """Catches pages that are evicted, kept or offloaded as those of all ranks."""
    sections = STAGE_3_SECTIONS[name]
    assert_same_but_norms(run(config(3, 2, **sections)), run(config(3, **sections)))


def test_pages_in_8_bits():
    """Catches codes of a group's shards that are decoded as those of all ranks."""
    quantized = run(config(3, 2, zero_optimization={"zero_quantized_weights": True}))
    for (mine, parameters), (theirs, _) in zip(quantized, over_all_ranks(4, 3, "fp32"), strict=True):
        assert mine[0] != theirs[0] and mine[0] == pytest.approx(theirs[0], rel=0.05)
        assert torch.equal(parameters, quantized[0][1])


def test_state_on_a_drive(tmp_path: Path):
    """Catches replicas that write to one file."""

    def on_drive(shard_ranks: int) -> list[Any]:
        drive = {"device": "nvme", "nvme_path": str(tmp_path)}
        zero = {"offload_optimizer": drive, "offload_param": {**drive, "max_in_cpu": 0}}
        return run(config(3, shard_ranks, zero_optimization=zero))

    assert_same_but_norms(on_drive(2), on_drive(0))


@STAGES
def test_sums_by_groups_leave_replicas_equal(stage: int):
    """Catches sums that depend on the rank, where the order of additions is free."""
    settings = config(stage, 2, zeropage={"deterministic_reduction": False})
    outcomes = run(settings)
    for _, parameters in outcomes:
        assert torch.equal(parameters, outcomes[0][1])
        assert (parameters - over_all_ranks(4, stage, "fp32")[0][1]).abs().max() < 1e-5


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Lamb": {"type": "Lamb", "params": {"lr": 1e-2}},
    "Muon": {"type": "Muon", "params": {"lr": 1e-2}},
    "RMSprop": {"type": "RMSprop", "params": {"lr": 1e-3}},
}


@STAGES
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers(stage: int, name: str):
    """Catches owners of whole parameters, and norms of parameters, that are sought among all ranks."""
    hybrid, flat = (run(config(stage, ranks, optimizer=OPTIMIZERS[name])) for ranks in (2, 0))
    for (mine, parameters), (theirs, expected) in zip(hybrid, flat, strict=True):
        assert torch.equal(parameters, hybrid[0][1])
        assert mine[0] == pytest.approx(theirs[0], rel=1e-5) and (parameters - expected).abs().max() < 1e-5


@STAGES
def test_an_overflow_in_one_group_skips_the_step_everywhere(stage: int):
    """Catches a group that updates while another one skips."""

    def loop(engine: Any, rank: int) -> Any:
        applied = []
        for step in range(4):
            loss = engine(*part_of_batch(token_batch(step, size=12), 4, rank))
            engine.backward(loss * math.inf if (step, rank) == (1, 3) else loss)
            engine.step()
            applied.append(engine.was_step_applied())
        return applied, engine.loss_scale(), engine.skipped_steps

    hybrid = run(config(stage, 2, **PRECISIONS["fp16"]), loop)
    assert [outcome[0][0] for outcome in hybrid] == [[True, False, True, True]] * 4
    assert_same(hybrid, run(config(stage, **PRECISIONS["fp16"]), loop))


@STAGES
def test_frozen_and_unfrozen_parameters(stage: int):
    """Catches gradients of newly trained pages that only one group exchanges."""
    model = small_net()
    for parameter in model.expand.parameters():
        parameter.requires_grad = False

    def loop(engine: Any, rank: int) -> list[float]:
        losses = micro_steps(engine, rank, range(2))
        engine.module.expand[0].weight.requires_grad = True
        return losses + micro_steps(engine, rank, range(2, 4))

    assert_same(run(config(stage, 2), loop, model=model), run(config(stage), loop, model=model))


class Branches(torch.nn.Module):
    """Each rank uses another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor, branch: int) -> torch.Tensor:
        return self.layers[branch](x).square().mean()


@STAGES
def test_ranks_with_different_graphs(stage: int):
    """Catches an exchange of pages with gradients that stays in a group: the other one would wait for ever."""
    torch.manual_seed(0)
    model = Branches()

    def loop(engine: Any, rank: int) -> list[float]:
        losses = []
        for step in range(3):
            x = torch.randn(3, 32, generator=torch.Generator().manual_seed(10 * step + rank))
            # At stage 3 the ranks of a group gather the same pages; groups differ.
            loss = engine(x, rank // 2 if stage == 3 else rank)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        return losses

    settings: dict[str, Any] = {"zeropage": {"page_numel": 1100}}
    assert_same(run(config(stage, 2, **settings), loop, model=model), run(config(stage, **settings), loop, model=model))


@pytest.mark.parametrize("stage", [2, 3])
def test_values_of_one_rank_reach_all_groups(stage: int):
    """Catches writes of modifier_rank, and gradients that the program changes, that stay in a group."""

    def loop(engine: Any, rank: int) -> Any:
        weight = engine.module.expand[0].weight
        with zeropage.zero.GatheredParameters([weight], modifier_rank=3):
            if rank == 3:
                with torch.no_grad():
                    weight.fill_(0.25)
        losses = micro_steps(engine, rank, range(1))
        with zeropage.zero.GatheredParameters([weight], modifier_rank=0):
            if rank == 0:
                with torch.no_grad():
                    weight.mul_(2)
        engine.backward(engine(*part_of_batch(token_batch(5, size=12), 4, rank)))
        gradient = weight.grad.clone()
        weight.grad.mul_(0.5)
        engine.step()
        return losses, gradient.double().sum().item(), micro_steps(engine, rank, range(6, 7))

    assert_same(run(config(stage, 2), loop), run(config(stage), loop))


def test_different_writes_of_groups_are_found():
    """Catches a comparison of writes within each group only."""

    def loop(engine: Any, rank: int) -> Any:
        with torch.no_grad():
            engine.module.tiny.fill_(1.0 if rank < 2 else 2.0)
        micro_steps(engine, rank, range(1))

    with pytest.raises(PeerError, match="'tiny' was written outside an update"):
        run(config(2, 2), loop)


def test_a_replica_that_differs_is_found():
    """Catches shards that are never compared with those of other groups."""

    def loop(engine: Any, rank: int) -> Any:
        micro_steps(engine, rank, range(1))
        if rank == 2:
            weight = engine.module.expand[0].weight
            moments = zeropage.utils.safe_get_local_optimizer_state(weight, "exp_avg")
            assert moments is not None
            zeropage.utils.safe_set_local_optimizer_state(weight, moments + 1.0, "exp_avg")
        micro_steps(engine, rank, range(1, 2))

    with pytest.raises(PeerError, match=r"page \d+ differs, rank 2 from rank 0, in one of .*expand.0.weight"):
        run(config(3, 2, zeropage={"replica_check_steps": 1}), loop)


def test_models_of_an_init_scope():
    """Catches tensors of zero.Init that are divided over all ranks, or that get one group's values."""

    models = [small_net(seed) for seed in range(4)]  # rank 0's values count

    def of_rank(rank: int, communicator: Any, settings: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        with zeropage.zero.Init(config_dict_or_path=settings):
            model = copy.deepcopy(models[rank])
        engine, *_ = zeropage.initialize(model=model, config=settings)
        return micro_steps(engine, rank, range(2)), flat_parameters(engine.module)

    zero = {"stage3_max_live_parameters": 2000}
    hybrid, flat = (
        run_ranks(4, functools.partial(of_rank, settings=config(3, ranks, zero_optimization=zero)), shard_ranks=ranks)
        for ranks in (2, 0)
    )
    assert_same(hybrid, flat)


def test_what_is_refused():
    """Catches groups that the ranks do not have."""
    with pytest.raises(ConfigError, match="zeropage.shard_ranks: expected 2, because the ranks were started in groups"):
        run_ranks(4, lambda rank, _: zeropage.initialize(model=small_net(), config=config(2)), shard_ranks=2)
    with pytest.raises(ConfigError, match="zeropage.shard_ranks: expected a divisor of the world size, 4, got 3"):
        run_ranks(4, lambda rank, _: zeropage.initialize(model=small_net(), config=config(2, 3)))
