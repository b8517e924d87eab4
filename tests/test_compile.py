"""torch.compile at stage 3: pages are fetched where compiled code uses them, and evicted when it does not."""

import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import config_of, flat_parameters, part_of_batch, token_batch

import zeropage
from zeropage.compiled_graphs import _hook_inductor, _pin_in_kernels
from zeropage.testing import run_ranks

WORLD, STEPS, BLOCKS, WIDTH = 2, 3, 8, 32
LIVE_NUMEL = 2 * 4 * WIDTH * WIDTH + 1000  # any two parameters, and no more
ROUNDING = 2e-5  # of parameters after STEPS steps at a learning rate of 1e-2


class Block(nn.Module):
    """What Inductor fuses reads parameters (the norm), and so do operators (the linear layers)."""

    def __init__(self, rank: int):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)
        if rank:  # adapters in addition to frozen weights
            self.expand.requires_grad_(False)
            self.down = nn.Parameter(torch.randn(WIDTH, rank) / WIDTH)
            self.up = nn.Parameter(torch.zeros(rank, 4 * WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        wide = self.expand(normed)
        if hasattr(self, "down"):
            wide = wide + normed @ self.down @ self.up
        return x + self.contract(nn.functional.gelu(wide))


class Net(nn.Module):
    def __init__(self, checkpointed: bool = False, adapter_rank: int = 0):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Block(adapter_rank) for _ in range(BLOCKS))
        self.checkpointed = checkpointed

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """tokens, targets [B, T] -> the mean cross entropy"""
        h = self.embedding(tokens)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.checkpointed else block(h)
        return nn.functional.cross_entropy((h @ self.embedding.weight.t()).flatten(0, 1), targets.flatten())


@dataclass
class Case:
    backend: str | None = None  # None: not compiled
    stage: int = 3
    where: str = "module"  # what is compiled: "module", "before" (before initialize), "blocks", "engine"
    checkpointed: bool = False
    adapter_rank: int = 0
    accumulation: int = 1
    options: dict[str, Any] | None = None
    communicator: str = "auto"

    def model(self) -> Net:
        torch.manual_seed(0)
        return Net(self.checkpointed, self.adapter_rank)


@dataclass
class Outcome:
    losses: list[float]
    parameters: torch.Tensor
    peak_bytes: int  # of gathered pages
    graphs: int
    breaks: int
    late: int  # graphs compiled after the first step
    prefetches: int


def config_of_case(case: Case) -> dict[str, Any]:
    """A page for every parameter."""
    return config_of(
        case.stage,
        accumulation=case.accumulation,
        eps=1e-4,
        zero_optimization={"stage3_max_live_parameters": LIVE_NUMEL},
        zeropage={"page_numel": 1, "timeout_ms": 120_000, "communicator": case.communicator},
    )


def compile_part(model: nn.Module, case: Case) -> None:
    arguments: dict[str, Any] = {"backend": case.backend, "fullgraph": True, "options": case.options}
    for module in model.blocks if case.where == "blocks" else [model]:
        module.compile(**arguments)


def train(case: Case) -> Outcome:
    """One rank of a job of WORLD."""
    import torch._dynamo.utils as dynamo

    torch._dynamo.reset()
    dynamo.counters.clear()
    model = case.model()
    if case.where == "before":
        compile_part(model, case)
    engine = zeropage.initialize(model=model, config=config_of_case(case))[0]
    if case.where == "engine":
        engine.compile(backend=case.backend, compile_kwargs={"fullgraph": True})
    elif case.backend and case.where != "before":
        compile_part(model, case)
    losses, first = [], 0
    for step in range(STEPS):
        for micro in range(case.accumulation):
            loss = engine(*part_of_batch(token_batch(step), WORLD, engine.global_rank, micro, case.accumulation))
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        first = first or dynamo.counters["stats"]["unique_graphs"]
    graphs = dynamo.counters["stats"]["unique_graphs"]
    breaks, pager = len(dynamo.counters["graph_break"]), engine._core.pager_stats
    outcome = Outcome(
        losses, flat_parameters(model), pager.peak_live_bytes, graphs, breaks, graphs - first, pager.prefetches
    )
    engine.destroy()
    return outcome


def train_cases(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: asdict(train(Case(**case))) for name, case in cases.items()}


def run_cases(cases: dict[str, Case], folder: Any) -> list[dict[str, Outcome]]:
    """The outcomes of every rank, by case."""
    arguments = json.dumps({"cases": {name: asdict(case) for name, case in cases.items()}})
    ranks = run_processes(WORLD, "test_compile", "train_cases", arguments, folder, timeout_s=600)
    return [{name: Outcome(**outcome) for name, outcome in rank.items()} for rank in ranks]


def train_plainly(case: Case) -> torch.Tensor:
    """Plain PyTorch on the whole batch, not compiled: the parameters."""
    model = case.model()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01, eps=1e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(*token_batch(step)).backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
    return flat_parameters(model)


WAYS = {
    "eager": Case(),
    "backend eager": Case("eager"),
    "aot_eager": Case("aot_eager"),
    "inductor": Case("inductor"),
    "inductor, stage 0": Case("inductor", stage=0),
    "before initialize": Case("inductor", where="before"),
    "blocks": Case("inductor", where="blocks"),
    "engine": Case("inductor", where="engine"),
    "gloo": Case("inductor", communicator="c10d"),
}


@pytest.mark.slow
def test_pages_are_fetched_where_compiled_code_uses_them(tmp_path):
    """Catches graphs that keep all their parameters resident, graph breaks and compilations caused by pages that move,
    other bits than those of stage 0, and collective gathers that start only when compiled code waits for them."""
    ranks = run_cases(WAYS, tmp_path)
    expected = train_plainly(Case())
    for outcomes in ranks:
        eager = outcomes["eager"]
        assert eager.peak_bytes > 0
        for name, outcome in outcomes.items():
            assert (outcome.parameters - expected).abs().max().item() < ROUNDING, name
            assert outcome.peak_bytes <= 1.1 * eager.peak_bytes, name
            assert (outcome.breaks, outcome.late) == (0, 0), name
            assert outcome.graphs == {"eager": 0, "blocks": 1}.get(name, 1), name
        assert outcomes["gloo"].prefetches > 0
        for name in ("inductor", "before initialize", "engine", "gloo"):
            assert outcomes[name].losses == outcomes["inductor, stage 0"].losses, name
            assert torch.equal(outcomes[name].parameters, outcomes["inductor, stage 0"].parameters), name


INSIDE: dict[str, dict[str, Any]] = {
    "checkpointing": {"checkpointed": True},
    "adapters": {"adapter_rank": 4},
    "accumulation": {"accumulation": 2},
}


@pytest.mark.slow
def test_recomputation_frozen_weights_and_accumulation(tmp_path):
    """Catches pages that compiled code misses when it recomputes, does not train what it uses, or runs several times
    before a step."""
    cases: dict[str, Case] = {}
    for name, settings in INSIDE.items():
        cases |= {name: Case("inductor", **settings), f"{name}, eager": Case(**settings)}
    ranks = run_cases(cases, tmp_path)
    for name in INSIDE:
        expected = train_plainly(cases[name])
        for outcomes in ranks:
            assert (outcomes[name].parameters - expected).abs().max().item() < ROUNDING, name
            assert outcomes[name].peak_bytes <= 1.1 * outcomes[f"{name}, eager"].peak_bytes, name
            assert (outcomes[name].graphs, outcomes[name].breaks, outcomes[name].late) == (1, 0, 0), name


def by_address(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend of the program itself whose code reads addresses."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def compiler(part: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            for value in values:
                if isinstance(value, torch.Tensor) and value.numel() > 0:
                    ctypes.c_byte.from_address(value.data_ptr())
            return part(*values)

        return make_boxed_func(run)

    return aot_autograd(fw_compiler=compiler)(graph, inputs)


class Halved(nn.Module):
    """Compiled code writes a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.linear = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.scale.mul_(0.5)
        return self.linear(x).sin() * 2


def train_unusual_code() -> dict[str, Any]:
    """One rank."""
    found: dict[str, Any] = {
        "C++ wrapper": asdict(train(Case("inductor", options={"cpp_wrapper": True}))),
        "by address": None,
    }
    torch._dynamo.reset()
    model = Case().model()
    engine = zeropage.initialize(model=model, config=config_of_case(Case()))[0]
    model.compile(backend=by_address, fullgraph=True)
    for step in range(STEPS):
        engine.backward(engine(*part_of_batch(token_batch(step), WORLD, engine.global_rank)))
        engine.step()
    found["by address"] = flat_parameters(model)
    engine.destroy()

    torch._dynamo.reset()
    model = Case().model()
    engine = zeropage.initialize(model=model, config=config_of_case(Case()))[0]
    model.compile(fullgraph=True)
    with torch.no_grad():
        found["loss without gradients"] = engine(*token_batch(0)).item()
    found["peak without gradients"] = engine._core.pager_stats.peak_live_bytes
    engine.destroy()

    torch._dynamo.reset()
    torch.manual_seed(0)
    halved = Halved()
    engine = zeropage.initialize(model=halved, config=config_of(3, zeropage={"page_numel": 1}))[0]
    halved.compile(fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            engine(torch.ones(4, 64))
    with zeropage.zero.GatheredParameters([halved.scale]):
        found["halved twice"] = halved.scale.detach().clone()
    return found


@pytest.mark.slow
def test_code_that_cannot_be_followed(tmp_path):
    """Catches raw addresses of absent parameters: in code of the C++ wrapper, of a backend that is not torch's, and in
    passes without gradients, which no autograd function shows; and values that compiled code writes and an eviction
    loses."""
    ranks = run_processes(WORLD, "test_compile", "train_unusual_code", "{}", tmp_path, timeout_s=600)
    plain = Case().model()
    expected = train_plainly(Case())
    for found in ranks:
        assert (found["C++ wrapper"]["parameters"] - expected).abs().max().item() < ROUNDING
        assert (found["by address"] - expected).abs().max().item() < ROUNDING
        assert 0 < found["peak without gradients"] <= 4 * LIVE_NUMEL
        assert found["loss without gradients"] == pytest.approx(plain(*token_batch(0)).item(), abs=1e-5)
        assert torch.equal(found["halved twice"], torch.full((64,), 0.25))


class Launcher:
    """Has the form of a Triton kernel that Inductor has generated; `run` reads an address."""

    mutated_arg_names = ("in_out_ptr0",)

    def __init__(self):
        self.fn = SimpleNamespace(arg_names=["in_ptr0", "in_out_ptr0", "xnumel", "XBLOCK"])

    def run(self, weight: torch.Tensor, bias: torch.Tensor, count: int, stream: int) -> None:
        ctypes.c_byte.from_address(weight.data_ptr())
        (ctypes.c_float * count).from_address(bias.data_ptr())[0] = 0.25


GENERATED = """
triton_0 = async_compile.triton('triton_0', '''...''')
async_compile.wait(globals())
def call(args):
    weight, bias = args
    triton_0.run(weight, bias, 64, stream=0)
"""


def test_kernels_of_triton():
    """Catches absent pages, and lost writes, in kernels that are called with `kernel.run(...)`."""

    def run(rank: int, communicator: Any) -> list[float]:
        layer = nn.Linear(64, 64)
        engine = zeropage.initialize(model=layer, config=config_of(3, zeropage={"page_numel": 1}))[0]
        scope: dict[str, Any] = {
            "triton_0": Launcher(),
            "async_compile": SimpleNamespace(triton=None, wait=lambda scope: None),
        }
        exec(GENERATED.split("globals())")[1], scope)
        graph = SimpleNamespace(current_callable=scope["call"], source_code=GENERATED)
        assert _pin_in_kernels(graph) is None and _pin_in_kernels(graph) is None
        assert scope["triton_0"].mutated_arg_names == Launcher.mutated_arg_names
        graph.current_callable([layer.weight, layer.bias])
        engine.module(torch.zeros(1, 64))
        with zeropage.zero.GatheredParameters([layer.bias]), torch.no_grad():
            return layer.bias[:1].tolist()

    assert run_ranks(2, run) == [[0.25]] * 2


@dataclass
class Box:
    """Torch's BoxedBool."""

    value: bool

    def __bool__(self) -> bool:
        return self.value


class GraphOnGpu:
    """Has the form of a graph of Inductor that may be recorded as a CUDA graph."""

    device_types = ("cuda",)
    current_callable = None
    with_cuda_graphs: bool

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: dict[str, Any]) -> None:
        self.with_cuda_graphs = bool(graph_kwargs["cudagraphs"])


@pytest.mark.parametrize("stage", (2, 3))
def test_cuda_graphs_of_sharded_parameters_are_left_out(stage, capfd):
    """Catches CUDA graphs at stage 3, which would read memory that has been freed, and their loss at other stages."""

    def run(rank: int, communicator: Any) -> bool:
        engine = zeropage.initialize(model=nn.Linear(64, 64), config=config_of(stage))[0]
        module: Any = ModuleType("output_code")
        module.CompiledFxGraph = type("CompiledFxGraph", (GraphOnGpu,), {})
        _hook_inductor(module, engine.module.parameters)
        graph = module.CompiledFxGraph()
        graph.post_compile([], None, {"cudagraphs": Box(True)})
        return graph.with_cuda_graphs

    assert run_ranks(2, run) == [stage == 2] * 2
    assert ("no CUDA graphs for this model" in capfd.readouterr().err) == (stage == 3)


def recorded_operators(model: nn.Module, backend: Any, path: Path) -> set[str]:
    """The names of what torch records during the first forward of a compiled model."""
    recorder = torch.profiler.ExecutionTraceObserver().register_callback(str(path))
    recorder.start()
    try:
        torch.compile(model, backend=backend)(torch.ones(2, 8))
    finally:
        recorder.stop()
        recorder.unregister_callback()
    return {node["name"] for node in json.loads(path.read_text())["nodes"]}


def compile_with_two_backends(folder: str) -> dict[str, Any]:
    """The program of one rank. Returns what is recorded during and after compilations before the first step and after
    it; and the warnings and the result of the backend cudagraphs, which is made to treat the CPU as a device with CUDA
    graphs."""
    from torch._dynamo.backends import cudagraphs

    from zeropage import compiled_graphs

    def slow_compiler(graph: Any, inputs: Any) -> Any:
        torch.ones(1).erfinv()
        return graph.forward

    engine = zeropage.initialize(model=nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), config=config_of(3))[0]
    path = Path(folder) / f"{engine.global_rank}.json"
    recorded = {"first": recorded_operators(engine.module, slow_compiler, path)}
    engine.backward(engine(torch.ones(2, 8)).sum())
    engine.step()
    torch._dynamo.reset()
    recorded["later"] = recorded_operators(engine.module, slow_compiler, path)

    messages: list[str] = []
    package: Any = compiled_graphs._C  # mypy refuses an assignment to a function of a module
    log_warn = package.log_warn
    package.log_warn = messages.append
    cudagraphs.check_multiple_devices_or_any_cpu_nodes = lambda mapping: None
    torch._dynamo.reset()
    expected = engine.module(torch.ones(2, 8))
    found = torch.compile(engine.module, backend="cudagraphs")(torch.ones(2, 8))
    package.log_warn = log_warn
    engine.backward(found.sum())
    engine.step()
    return {
        "recorded": {name: sorted(value & {"aten::erfinv", "aten::linear"}) for name, value in recorded.items()},
        "messages": messages,
        "same": torch.equal(found, expected),
    }


def test_compiling_is_not_recorded_and_records_no_graph(tmp_path):
    """Catches an observer that records every operator of the compiler, one that no longer sees the compiled code, and
    CUDA graphs of the backend cudagraphs at stage 3, which would read memory that has been freed."""
    arguments = json.dumps({"folder": str(tmp_path)})
    for rank in run_processes(WORLD, "test_compile", "compile_with_two_backends", arguments, tmp_path):
        assert rank["recorded"] == {"first": ["aten::linear"], "later": ["aten::erfinv", "aten::linear"]}
        assert len(rank["messages"]) == 1 and "backend cudagraphs" in rank["messages"][0] and rank["same"]
