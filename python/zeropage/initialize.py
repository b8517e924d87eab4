"""`initialize`: makes an engine from the objects of a training script."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from . import _C
from .comm import make_default_group
from .distributed import World, choose_device, current_world, started_by_launcher
from .errors import ConfigError, UsageError


def initialize(
    args: Any = None,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | None = None,
    model_parameters: Any = None,
    training_data: torch.utils.data.Dataset | None = None,
    lr_scheduler: Any = None,
    distributed_port: int = 29500,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    config: str | os.PathLike | dict[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | os.PathLike | dict[str, Any] | None = None,
    device: str | torch.device | None = None,
):
    """Wraps a model for training according to the configuration. Collective.

    model: its parameters are taken over in place: they are cast to the configured precision, get rank 0's values, and
    are put into pages. optimizer: one of torch.optim, or another elementwise one ("zero_allow_untested_optimizer"), or
    a callable (parameters -> optimizer); None: the config's section "optimizer". model_parameters: the parameters that
    the optimizer updates, or groups of them (dicts); None: all trainable ones. training_data: a data set; the third
    result is then a loader of this rank's part of it. lr_scheduler: a torch scheduler or a callable (optimizer ->
    scheduler);
    None: the config's section "scheduler". config, config_params, args.deepspeed_config (older: args.deepscale_config):
    a path, a dict or JSON text; one of them. device: the device of the engine, for example "cpu" or "cuda:1"; None:
    that of the variable ZEROPAGE_DEVICE, or the accelerator if there is one. dist_init_required: False: torch's default
    process group is not made. Otherwise it is made for ranks that a launcher has started, unless it exists, for
    DistributedSampler and the script's own collectives. distributed_port: accepted for compatibility; the launcher's
    environment has the port.

    Returns (engine, engine.optimizer, data loader or None, scheduler or None). Raises ConfigError, UsageError,
    PeerError (ranks differ), TimeoutError.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"initialize(model=...) takes a torch.nn.Module, got {type(model).__name__}")
    for name, value in (("mpu", mpu), ("mesh_param", mesh_param)):
        if value is not None:
            raise ConfigError(f"{name} is not available in this version: leave it out")
    world = current_world()
    _check_local_rank(args, world)
    source = _config_source(args, config, config_params)
    parsed = parse_config(source, world.size)
    if parsed.log_level is not None:
        _C.set_log_level(parsed.log_level)
        logging.getLogger("zeropage").setLevel(parsed.log_level.upper())
    if world.rank == 0:
        for note in _config_notes(source):
            _C.log_warn(note)
    _configure_checkpointing(parsed)
    device = choose_device(model, world, device)
    if started_by_launcher() and dist_init_required is not False:
        make_default_group(device, world, timedelta(milliseconds=parsed.timeout_ms))

    from .compat import trainer_again
    from .engine import ZeropageEngine

    engine = ZeropageEngine(
        model,
        parsed,
        world,
        optimizer=optimizer,
        model_parameters=model_parameters,
        lr_scheduler=lr_scheduler,
        collate_fn=collate_fn,
        device=device,
    )
    trainer_again.install()
    if training_data is not None:
        engine.training_dataloader = engine._training_loader(training_data)
    return engine, engine.optimizer, engine.training_dataloader, engine.lr_scheduler


def _check_local_rank(args: Any, world: World) -> None:
    given = getattr(args, "local_rank", None)
    if given is not None and given >= 0 and given != world.local_rank:
        raise UsageError(
            f"args.local_rank is {given}, but the environment has LOCAL_RANK={world.local_rank}: launch with `zeropage` or `torchrun`"
        )


def _configure_checkpointing(config: _C.Config) -> None:
    """Applies the section "activation_checkpointing", if it has any values."""
    section = json.loads(config.effective_json)["activation_checkpointing"]
    if any(section.values()):
        from .checkpointing import configure_from

        configure_from(section)


def _config_source(args: Any, config: Any, config_params: Any) -> Any:
    sources = {"config": config, "config_params": config_params}
    sources |= {f"args.{name}": getattr(args, name, None) for name in ("deepspeed_config", "deepscale_config")}
    given = {name: value for name, value in sources.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(
            f"expected one of {', '.join(sources)}, got {' and '.join(given) or 'none of them'}: "
            "pass config= with the path of a JSON file, a dict, or JSON text"
        )
    return next(iter(given.values()))


def parse_config(source: str | os.PathLike | dict[str, Any], world_size: int) -> _C.Config:
    """Reads a path, a dict or JSON text. Raises ConfigError, IoError."""
    text, origin = _document(source)
    return _C.Config.from_file(origin, world_size) if text is None else _C.Config.from_json(text, world_size, origin)


def _config_notes(source: str | os.PathLike | dict[str, Any]) -> list[str]:
    """Notes about effective values that differ from the text of the document."""
    text, origin = _document(source)
    return _C.Config.notes_of_file(origin) if text is None else _C.Config.notes(text, origin)


def _document(source: str | os.PathLike | dict[str, Any]) -> tuple[str | None, str]:
    """(JSON text, its name in messages), or (None, the path of a file)."""
    if isinstance(source, dict):
        try:
            return json.dumps(source), "dict"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the config dict cannot be written as JSON: {error}") from None
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"the config is a {type(source).__name__}; expected a path, a dict or JSON text")
    path = os.fspath(source)
    if path.lstrip().startswith("{"):
        return path, "JSON text"
    if not os.path.isfile(path):
        raise ConfigError(f"there is no config file {path!r} (looked from {os.getcwd()})")
    return None, path


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the options that training scripts of DeepSpeed have: --deepspeed and --deepspeed_config FILE."""
    group = parser.add_argument_group("Zeropage", "configuration of the training engine")
    group.add_argument("--deepspeed", action="store_true", help="for scripts that ask whether to use the engine")
    group.add_argument("--deepspeed_config", metavar="FILE", help="the configuration, a JSON file")
    return parser
