"""The Python interface: initialize and its arguments, the engine's loop, getters, schedulers, data loader, errors."""

import argparse
import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import zeropage
from zeropage import errors
from zeropage.testing import run_ranks

CONFIG = {
    "train_batch_size": 8,
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.01}},
}
WITHOUT_OPTIMIZER = {key: value for key, value in CONFIG.items() if key != "optimizer"}


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 1))


def one_step(engine, value: float = 1.0) -> torch.Tensor:
    batch = torch.full((engine.train_micro_batch_size_per_gpu(), 4), value, dtype=next(engine.parameters()).dtype)
    loss = engine(batch * torch.randn_like(batch)).square().mean()
    engine.backward(loss)
    engine.step()
    return loss


# -- initialize


@pytest.mark.parametrize("form", ["dict", "path", "str path", "text", "config_params", "args"])
def test_config_forms(form, tmp_path):
    """Catches a form of the configuration that is read differently or not at all."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(CONFIG))
    given = {
        "dict": {"config": CONFIG},
        "path": {"config": path},
        "str path": {"config": str(path)},
        "text": {"config": json.dumps(CONFIG)},
        "config_params": {"config_params": CONFIG},
        "args": {"args": argparse.Namespace(deepspeed_config=str(path), local_rank=0)},
    }[form]
    engine, optimizer, loader, scheduler = zeropage.initialize(model=make_model(), **given)
    assert engine.zero_optimization_stage() == 2 and engine.train_batch_size() == 8
    assert optimizer is engine.optimizer and loader is None and scheduler is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, errors.ConfigError, "none of them"),
        ({"config": CONFIG, "config_params": CONFIG}, errors.ConfigError, "config and config_params"),
        ({"config": "/nowhere/ds.json"}, errors.ConfigError, "/nowhere/ds.json"),
        ({"config": 7}, errors.ConfigError, "int"),
        ({"config": {"train_batch_size": {1}}}, errors.ConfigError, "JSON"),
        ({"config": {**CONFIG, "train_batch_sizes": 8}}, errors.ConfigError, "train_batch_size"),
        ({"config": CONFIG, "mpu": object()}, errors.ConfigError, "mpu"),
        ({"config": CONFIG, "args": argparse.Namespace(local_rank=3)}, errors.UsageError, "LOCAL_RANK"),
        ({"config": CONFIG, "model": "bert"}, errors.UsageError, "str"),
        ({"config": CONFIG, "model_parameters": [1, 2]}, errors.ConfigError, "int"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    """Catches a mistake of the caller whose error does not describe it."""
    with pytest.raises(error, match=message):
        zeropage.initialize(**{"model": make_model(), **arguments})


def test_error_classes_are_also_the_builtin_ones():
    """Catches scripts that handle ValueError, OSError or TimeoutError and would not see ours."""
    assert issubclass(errors.ConfigError, ValueError) and issubclass(errors.IoError, OSError)
    assert issubclass(errors.TimeoutError, TimeoutError)
    with pytest.raises(ValueError, match="train_batch_size"):
        zeropage.initialize(model=make_model(), config={"train_batch_size": -1})


# -- the optimizer


def train_plain(optimizer_of, scheduler_of=None, steps: int = 5) -> nn.Module:
    model = make_model()
    optimizer = optimizer_of(model)
    scheduler = scheduler_of(optimizer) if scheduler_of else None
    torch.manual_seed(5)
    for _ in range(steps):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return model


def train_ours(steps: int = 5, config=WITHOUT_OPTIMIZER, **arguments) -> nn.Module:
    """`optimizer`, `model_parameters` and `lr_scheduler` may be functions of the model."""
    model = make_model()
    made = {key: value(model) if key.endswith("_of_model") else value for key, value in arguments.items()}
    made = {key.removesuffix("_of_model"): value for key, value in made.items()}
    engine, *_ = zeropage.initialize(model=model, config=config, **made)
    torch.manual_seed(5)
    for _ in range(steps):
        engine.backward(engine(torch.randn(8, 4)).square().mean())
        engine.step()
    return model


def assert_same(ours: nn.Module, plain: nn.Module) -> None:
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def two_groups(model):
    return [
        {"params": list(model[0].parameters()), "lr": 3e-2},
        {"params": list(model[2].parameters()) + list(model[3].parameters())},
    ]


@pytest.mark.parametrize("kind", ["object", "callable", "adam", "groups"])
def test_client_optimizer_updates_as_torch_does(kind):
    """Catches hyperparameters or groups that the engine does not get."""
    make = {
        "object": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
        "callable": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-2),
        "adam": lambda m: torch.optim.Adam(m.parameters(), lr=2e-2, weight_decay=0.1),
        "groups": lambda m: torch.optim.AdamW(two_groups(m), lr=1e-2, weight_decay=0.2),
    }[kind]
    if kind == "callable":
        ours = train_ours(optimizer=lambda params: torch.optim.AdamW(params, lr=2e-2))
    else:
        ours = train_ours(optimizer_of_model=make)
    assert_same(ours, train_plain(make))


def test_model_parameters_as_groups():
    """Catches keys of a group without effect, and defaults that are not those of the configuration."""
    ours = train_ours(config=CONFIG, model_parameters_of_model=two_groups)
    assert_same(ours, train_plain(lambda m: torch.optim.AdamW(two_groups(m), lr=1e-2, weight_decay=0.01)))


def test_what_is_no_optimizer_is_refused():
    """Catches an object that fails only in the first step."""
    model = make_model()
    with pytest.raises(errors.ConfigError, match="list.*torch.optim.Optimizer"):
        zeropage.initialize(model=model, optimizer=list(model.parameters()), config=WITHOUT_OPTIMIZER)
    with pytest.raises(errors.ConfigError, match="differentiable"):
        zeropage.initialize(
            model=model, optimizer=torch.optim.Adam(model.parameters(), differentiable=True), config=WITHOUT_OPTIMIZER
        )


def test_rates_are_readable_and_writable():
    """Catches a rate that is written into param_groups and not used."""
    model = make_model()
    engine, optimizer, *_ = zeropage.initialize(model=model, config=CONFIG)
    assert engine.get_lr() == [1e-2] and engine.get_mom() == [(0.9, 0.999)]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    one_step(engine)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    optimizer.param_groups[0]["lr"] = 1e-3
    one_step(engine)
    assert not torch.equal(before[0], next(model.parameters()))


def test_no_optimizer():
    """Catches an engine for inference that demands an optimizer, and a step that quietly does nothing."""
    engine, optimizer, *_ = zeropage.initialize(model=make_model(), config=WITHOUT_OPTIMIZER)
    assert optimizer is None
    engine.eval()
    assert engine(torch.randn(2, 4)).shape == (2, 1)
    loss = engine(torch.randn(2, 4)).mean()
    engine.backward(loss)
    with pytest.raises(errors.UsageError, match="optimizer"):
        engine.step()


# -- schedules


@pytest.mark.parametrize("built_on", ["client", "ours"])
def test_torch_schedulers(built_on, recwarn):
    """Catches a scheduler of torch that does not drive the engine, or warns that the optimizer never steps."""
    make_scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)  # noqa: E731
    plain = train_plain(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.01), make_scheduler)
    if built_on == "ours":
        ours = train_ours(config=CONFIG, lr_scheduler=make_scheduler)
    else:
        model = make_model()
        client = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        engine, *_ = zeropage.initialize(
            model=model, optimizer=client, lr_scheduler=make_scheduler(client), config=WITHOUT_OPTIMIZER
        )
        torch.manual_seed(5)
        for _ in range(5):
            engine.backward(engine(torch.randn(8, 4)).square().mean())
            engine.step()
        ours = model
        assert engine.get_lr() == [2.5e-3]
    assert_same(ours, plain)
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_configured_schedule():
    """Catches a schedule that does not advance, advances twice, or does not show in the groups."""
    schedule = {"type": "WarmupLR", "params": {"warmup_num_steps": 4, "warmup_max_lr": 1e-2, "warmup_type": "linear"}}
    engine, optimizer, _, scheduler = zeropage.initialize(model=make_model(), config={**CONFIG, "scheduler": schedule})
    rates = []
    for _ in range(6):
        assert engine.get_lr() == scheduler.get_lr()
        rates.append(engine.get_lr()[0])
        one_step(engine)
        scheduler.step()  # scripts that step it themselves must not advance it twice
    assert rates == sorted(rates) and rates[-1] == pytest.approx(1e-2) and len(set(rates)) >= 4
    assert engine.scheduler_name() == "WarmupLR"
    state = scheduler.state_dict()
    one_step(engine)
    scheduler.load_state_dict({"last_batch_iteration": 0})
    assert engine.get_lr()[0] < rates[-1] and scheduler.state_dict() != state


# -- the loop


def test_accumulation_and_counters():
    """Catches counters that differ from the reference's, and updates between the boundaries."""
    config = {**CONFIG, "gradient_accumulation_steps": 4, "zero_optimization": {"stage": 1}}
    engine, *_ = zeropage.initialize(model=make_model(), config=config)
    assert engine.get_batch_info() == (8, 2, 4) and engine.get_global_grad_norm() is None
    weight = engine.module[0].weight
    for micro in range(8):
        before = weight.detach().clone()
        assert engine.is_gradient_accumulation_boundary() == (micro % 4 == 3)
        one_step(engine)
        assert torch.equal(before, weight) != (micro % 4 == 3)
    assert (engine.micro_steps, engine.global_steps, engine.global_samples, engine.skipped_steps) == (8, 2, 16, 0)
    assert engine.was_step_applied() and engine.get_global_grad_norm() > 0
    engine.set_gradient_accumulation_boundary(True)
    one_step(engine)
    assert engine.global_steps == 3
    engine.set_gradient_accumulation_boundary(None)
    engine.set_train_batch_size(16)
    assert engine.get_batch_info() == (16, 2, 8)
    with pytest.raises(errors.ConfigError, match="17"):
        engine.set_train_batch_size(17)


def test_backward_returns_the_divided_loss_and_leaves_no_grad():
    """Catches a return value that differs from the reference's, and gradients that stay on the parameters."""
    engine, *_ = zeropage.initialize(model=make_model(), config={**CONFIG, "gradient_accumulation_steps": 4})
    loss = engine(torch.randn(2, 4)).square().mean()
    assert engine.backward(loss).item() == pytest.approx(loss.item() / 4)
    assert all(p.grad is None for p in engine.parameters())
    assert engine.mean_loss() == pytest.approx(loss.item())
    with pytest.raises(errors.UsageError, match="float"):
        engine.backward(1.0)


def test_step_before_backward_is_an_error():
    """Catches an update made of nothing."""
    engine, *_ = zeropage.initialize(model=make_model(), config=CONFIG)
    with pytest.raises(errors.UsageError, match="backward"):
        engine.step()


def test_errors_of_user_code_keep_their_class():
    """Catches exceptions of Python code inside backward that turn into something else."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("from the backward")

    engine, *_ = zeropage.initialize(model=make_model(), config=CONFIG)
    with pytest.raises(KeyError, match="from the backward"):
        engine.backward(Broken.apply(engine(torch.randn(8, 4))).mean())


def test_overflow_skips_the_step():
    """Catches an overflow that updates, or that the optimizer does not report."""
    config = {**CONFIG, "fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 1}}
    engine, optimizer, *_ = zeropage.initialize(model=nn.Linear(4, 1), config=config)
    one_step(engine)
    assert not optimizer.overflow and engine.loss_scale() == 16
    engine.backward((engine(torch.ones(8, 4).half()) * torch.inf).mean())
    engine.step()
    assert optimizer.overflow and not engine.was_step_applied() and engine.skipped_steps == 1
    assert engine.loss_scale() == optimizer.loss_scale == 8


# -- the engine as a module


def test_the_engine_has_the_attributes_of_its_module():
    """Catches prefixes in names, and module attributes that cannot be reached."""
    model = make_model()
    model.tokenizer = "bytes"
    engine, *_ = zeropage.initialize(model=model, config=CONFIG)
    assert isinstance(engine, nn.Module) and engine.module is model and engine.tokenizer == "bytes"
    assert list(engine.state_dict()) == list(model.state_dict())
    assert [name for name, _ in engine.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert engine.eval() is engine and not model.training and not engine.training
    engine.train()
    assert model[2].training
    assert engine.to("cpu") is engine
    with pytest.raises(errors.UsageError, match=r"0\.weight"):
        engine.half()
    with pytest.raises(AttributeError, match="no_such_thing"):
        engine.no_such_thing
    engine.destroy()
    with pytest.raises(errors.UsageError, match="destroyed"):
        engine.global_steps


@pytest.mark.parametrize(
    ("section", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), (None, torch.float32)]
)
def test_precision(section, dtype):
    """Catches parameters that stay in another type, and buffers that do not."""
    config = {**CONFIG, **({section: {"enabled": True}} if section else {})}
    engine, *_ = zeropage.initialize(model=make_model(), config=config)
    state = engine.state_dict()
    assert state["0.weight"].dtype == dtype
    assert state["2.running_mean"].dtype == state["2.weight"].dtype == torch.float32
    assert state["2.num_batches_tracked"].dtype == torch.int64
    assert engine.get_data_types()[0] == dtype
    assert engine.bfloat16_enabled() == (section == "bf16") and engine.fp16_enabled() == (section == "fp16")


def test_auto_cast_of_inputs():
    """Catches fp16.auto_cast without effect."""
    config = {**CONFIG, "fp16": {"enabled": True, "auto_cast": True}}
    engine, *_ = zeropage.initialize(model=nn.Linear(4, 1), config=config)
    assert engine(torch.ones(8, 4)).dtype == torch.float16


# -- several ranks


def test_ranks_start_from_rank_0():
    """Catches parameters or buffers that differ between ranks at the start."""
    base = [make_model() for _ in range(2)]
    with torch.no_grad():
        for tensor in base[1].state_dict().values():
            tensor.add_(1)

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=base[rank], config=CONFIG)
        assert (engine.global_rank, engine.world_size) == (rank, 2)
        return {name: value.clone() for name, value in engine.state_dict().items()}

    first, second = run_ranks(2, run)
    for name, value in make_model().state_dict().items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value), name


def test_training_data_is_split_over_the_ranks():
    """Catches ranks that see the same samples, miss some, or get different numbers of batches."""
    data = torch.utils.data.TensorDataset(torch.arange(26))
    base = make_model()

    def run(rank, communicator, drop_last):
        config = {**CONFIG, "dataloader_drop_last": drop_last}
        engine, _, loader, _ = zeropage.initialize(model=copy.deepcopy(base), config=config, training_data=data)
        assert len(loader) == len(list(loader))
        epochs = []
        for _ in range(2):
            epochs.append(torch.cat([batch[0] for batch in loader]).tolist())
            one_step(engine)  # the next epoch has another order
        return epochs

    parts = run_ranks(2, lambda rank, communicator: run(rank, communicator, False))
    for epoch in range(2):
        assert sorted(parts[0][epoch] + parts[1][epoch]) == list(range(26))
    assert parts[0][0] != parts[0][1]
    short = run_ranks(2, lambda rank, communicator: run(rank, communicator, True))
    assert len(short[0][0]) == len(short[1][0]) == 12 and not set(short[0][0]) & set(short[1][0])


def test_gathered_parameters_take_the_modifiers_values():
    """Catches edits by one rank that the others, or the next step, do not see."""
    base = make_model()
    config = {**CONFIG, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=config)
        weight = engine.module[0].weight
        with zeropage.zero.GatheredParameters(weight, modifier_rank=0):
            if rank == 0:
                weight.data.fill_(0.5)
        with zeropage.zero.gathered([*engine.parameters(), None]):  # a bias that a layer lacks
            return weight.detach().numpy().copy()

    for values in run_ranks(2, run):
        assert (values == 0.5).all()
    with pytest.raises(errors.UsageError, match="parameters()"):
        zeropage.zero.GatheredParameters([base])


def test_memory_report():
    """Catches a report that is not about every rank."""
    base = nn.Linear(512, 512)

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=CONFIG)
        return engine.memory_report()

    report = run_ranks(2, run)[1]
    assert report.stage == 2 and len(report.ranks) == 2
    assert report.ranks[0]["parameters"] >= report.formula.parameters == 4 * 512 * 513
    assert "stage 2 formula" in report.table() and "rank 1" in report.table()


def test_first_failure_is_raised_and_ends_the_others():
    """Catches ranks that hang, or an error that hides the one that caused it."""

    def run(rank, communicator):
        if rank == 1:
            raise ZeroDivisionError("rank 1 is broken")
        communicator.barrier()

    with pytest.raises(ZeroDivisionError, match="rank 1 is broken"):
        run_ranks(3, run, timeout_s=20)


def test_errors_of_a_gather_keep_their_class_and_are_raised_again():
    """Catches a failure inside an operator that arrives as a plain RuntimeError, and a page that a failed gather leaves
    broken."""
    base = make_model()
    config = {**CONFIG, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    both_ready = threading.Barrier(2)

    def run(rank, communicator):
        engine, *_ = zeropage.initialize(model=copy.deepcopy(base), config=config)
        engine.empty_partition_cache()
        both_ready.wait(20)
        if rank == 1:
            communicator.abort("enough")
            return
        for _ in range(2):
            with pytest.raises(errors.PeerError, match="0.weight.*rank 1 aborted: enough"):
                engine(torch.randn(4, 4))

    run_ranks(2, run, timeout_s=20, two_sided=True)


# -- printing, import


def test_steps_per_print_and_dump_state(capsys):
    """Catches a line that is not printed, and a dump without the effective values."""
    engine, *_ = zeropage.initialize(model=make_model(), config={**CONFIG, "steps_per_print": 2, "dump_state": True})
    for _ in range(4):
        one_step(engine)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["2", "4"]
    assert any('"train_batch_size"' in line for line in lines)


def test_config_arguments():
    """Catches scripts whose arguments --deepspeed and --deepspeed_config are refused."""
    parser = zeropage.add_config_arguments(argparse.ArgumentParser())
    assert parser.parse_args(["--deepspeed", "--deepspeed_config", "x.json"]).deepspeed_config == "x.json"


def test_import_is_cheap():
    """Catches an import that loads more than it needs: at most a tenth of torch's processor time (measured: 0.013)."""
    code = (
        "import time; begin = time.process_time(); import torch; middle = time.process_time(); import zeropage; "
        "print((time.process_time() - middle) / (middle - begin))"
    )
    environment = {"PYTHONPATH": str(Path(zeropage.__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    shares = [float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) for _ in range(2)]
    assert min(shares) < 0.1
