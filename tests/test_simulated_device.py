"""The simulated device itself: it does what a GPU would do, and it finds a planted fault of every kind."""

import copy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import simulated_device
import torch
from simulated_device import SimulatedDeviceError
from torch import nn
from torch.nn import functional as F
from training import small_net, token_batch

pytestmark = pytest.mark.simulated

HERE = Path(__file__).resolve().parent
DEVICE = "simulated:0"
LONG_US = 200_000


@pytest.fixture
def stream() -> torch.Stream:
    return torch.Stream(DEVICE)


def tensor(*size: int) -> torch.Tensor:
    return torch.ones(*size, device=DEVICE)


def finds(*words: str) -> None:
    """All words are in one fault, which is the only one."""
    with pytest.raises(SimulatedDeviceError) as found:
        simulated_device.check()
    lines = str(found.value).splitlines()
    assert len(lines) == 2, lines
    assert all(word in lines[1] for word in words), lines[1]


# -- results


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_has_the_cpus_bits(precision: torch.dtype):
    """Catches an operator that reads or writes other elements than on the CPU, or at another time."""
    model = small_net().to(precision)
    there = copy.deepcopy(model).to(DEVICE)
    for step in range(3):
        model(*token_batch(step)).backward()
        there(*(x.to(DEVICE) for x in token_batch(step))).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(there.get_parameter(name).grad.cpu(), parameter.grad), name


OPERATORS = {
    "reduction": lambda x: x.sum(0),
    "views": lambda x: x.t()[1:].reshape(-1).unfold(0, 3, 2),
    "index": lambda x: x[torch.tensor([0, 2])],
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: torch.nonzero(x > 0),
    "sort": lambda x: torch.sort(x, dim=1),
    "cat": lambda x: torch.cat([x, x.flip(0)]),
    "split": lambda x: x.split(2, 1)[1].contiguous(),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "softmax": lambda x: F.softmax(x, -1),
    "norm": lambda x: F.layer_norm(x, (5,)),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    "conv": lambda x: F.conv1d(x[None], x[:, :1, None].expand(4, 4, 2)),
    "foreach": lambda x: torch._foreach_add([x, x + 1], 2.0)[1],
    "type": lambda x: x.to(torch.bfloat16).to(torch.float64),
    "fill": lambda x: torch.full_like(x, 3).index_fill_(0, torch.tensor([1], device=x.device), 0),
    "arange": lambda x: torch.arange(7, device=x.device) * 2,
    "resize": lambda x: x.clone().resize_(2, 3),
    "scatter": lambda x: torch.zeros_like(x).scatter_add_(0, (x > 0).long(), x),
    "topk": lambda x: x.topk(2).values,
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_the_cpus_bits(name: str):
    """Catches a kind of operator that the fallback takes apart wrongly."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected, found = OPERATORS[name](x), OPERATORS[name](x.to(DEVICE))
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, found)), strict=True):
        assert other.device == torch.device(DEVICE) and one.dtype == other.dtype
        assert torch.equal(other.cpu(), one)


def test_random_numbers_follow_the_seed():
    """Catches numbers that depend on when an operator runs, and a state that does not bring them back."""
    torch.manual_seed(3)
    first = torch.randn(5, device=DEVICE).cpu()
    state = torch.simulated.get_rng_state()
    second = torch.randn(5, device=DEVICE).cpu()
    torch.simulated.set_rng_state(state)
    assert torch.equal(torch.randn(5, device=DEVICE).cpu(), second)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, device=DEVICE).cpu(), first) and not torch.equal(first, second)


def test_an_error_in_a_task_reaches_the_host():
    """Catches an operator that fails on its stream and is taken to have worked."""
    F.embedding(torch.tensor([7], device=DEVICE), tensor(3, 2))
    with pytest.raises(RuntimeError, match="aten::.* on stream 0 of simulated:0 failed: .*out of range"):
        torch.accelerator.synchronize()


def test_arguments_on_two_devices_are_refused():
    """Catches operators that take what a GPU would refuse."""
    with pytest.raises(RuntimeError, match="two devices|others are on simulated:0"):
        tensor(3) + tensor(3).to("simulated:1")
    with pytest.raises(RuntimeError, match="two devices|is on the CPU"):
        tensor(3) + torch.ones(3)
    assert torch.equal(tensor(3).to("simulated:1").to(DEVICE).cpu(), torch.ones(3))


# -- time


def test_copies_and_operators_are_asynchronous():
    """Catches a device that is done when the call returns, which would find no missing wait by its values."""
    host = torch.zeros(4, pin_memory=True)
    event = torch.Event(DEVICE)
    there = tensor(4)
    torch.accelerator.synchronize()
    with simulated_device.delays(seed=1, max_us=LONG_US):
        begin = time.perf_counter()
        for _ in range(40):
            there.add_(1)
        host.copy_(there, non_blocking=True)
        there.copy_(host, non_blocking=True)
        event.record()
        launched = time.perf_counter() - begin
        assert not event.query()
        event.synchronize()
    assert launched < time.perf_counter() - begin - 0.05
    assert host.tolist() == there.tolist() == [41.0] * 4


def test_streams_overtake_each_other(stream: torch.Stream):
    """Catches streams that run in one order always."""
    orders = set()
    for seed in range(20):
        with simulated_device.delays(seed, max_us=5000):
            events = []
            for which in (torch.accelerator.current_stream(), stream):
                with which:
                    for _ in range(6):
                        tensor(2).add_(1)
                    events.append(torch.Event(DEVICE, enable_timing=True))
                    events[-1].record(which)
            torch.accelerator.synchronize()
            orders.add(events[0].elapsed_time(events[1]) > 0)
    assert orders == {True, False}


# -- races


def test_a_read_that_nothing_orders_after_the_write(stream: torch.Stream):
    """Catches a missing wait of one stream for another."""
    x = tensor(8)
    with stream:
        x + 1
    finds("aten::add.out on stream", "reads memory that aten::fill_", "writes, and nothing orders the two (32 bytes)")


def test_a_write_that_nothing_orders_after_the_read(stream: torch.Stream):
    """Catches memory that is written while another stream still reads it."""
    x = tensor(8)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        x + 1
    x.mul_(2)
    finds("aten::mul", "writes memory that aten::add.out on stream", "reads, and nothing orders")


def test_two_writes_that_nothing_orders(stream: torch.Stream):
    """Catches two streams that write the same bytes, and only those."""
    x = tensor(8)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        x[:6].zero_()
    x[6:].zero_()
    simulated_device.check()
    x[5:].zero_()
    finds("aten::zero_", "writes memory that aten::zero_ on stream", "(4 bytes)")
    torch.accelerator.synchronize()  # before the memory of x is reused


@pytest.mark.parametrize("how", ["event", "stream", "host", "device"])
def test_what_is_ordered_is_no_race(how: str, stream: torch.Stream):
    """Catches a check that does not know one of the ways to wait."""
    x, main = tensor(8), torch.accelerator.current_stream()
    event = torch.Event(DEVICE)
    event.record()
    if how == "event":
        stream.wait_event(event)
    elif how == "stream":
        stream.wait_stream(main)
    elif how == "host":
        event.synchronize()
    else:
        torch.accelerator.synchronize()
    with stream:
        x.add_(1)
    main.wait_stream(stream)
    assert x.sum().item() == 16


def test_what_only_happened_in_time_is_a_race(stream: torch.Stream):
    """Catches a check of times instead of order: here everything was long over."""
    x = tensor(8)
    time.sleep(0.1)
    with stream:
        x.zero_()
    finds("race: ", "aten::fill_")


# -- memory


def test_freed_memory_is_poison_and_used_again_at_once():
    """Catches an allocator that leaves old values in freed memory, or hands out fresh memory only."""
    x = tensor(1000)
    address = x.data_ptr()
    view = torch.as_strided(x, (1000,), (1,)).detach()
    del x, view
    y = torch.empty(1000, device=DEVICE)
    assert y.data_ptr() == address and y.isnan().all().item()


def test_memory_that_is_freed_while_another_stream_uses_it(stream: torch.Stream):
    """Catches a missing record_stream."""
    x = tensor(1000)
    stream.wait_stream(torch.accelerator.current_stream())
    with stream:
        x + 1
    del x
    finds("reuse of freed memory on stream 0", "that aten::add.out on stream")


def test_record_stream_keeps_memory(stream: torch.Stream):
    """Catches a record_stream that is ignored."""
    with simulated_device.delays(seed=2, max_us=20_000):
        for _ in range(20):
            x = tensor(1000)
            stream.wait_stream(torch.accelerator.current_stream())
            with stream:
                y = x + 1
            x.record_stream(stream)
            del x
            with stream:
                total = y.sum()
            del y
            torch.empty(1000, device=DEVICE).zero_()
            with stream:
                assert total.item() == 2000


def test_views_of_no_memory():
    """Catches a device that finds itself from a pointer that CUDA does not know: null, or freed."""
    there = torch.zeros(4096, dtype=torch.uint8, device=DEVICE)
    assert simulated_device.from_blob(there.data_ptr(), 16).device == there.device
    with pytest.raises(RuntimeError, match="no block of device memory"):
        simulated_device.from_blob(0, 0)
    address = there.data_ptr()
    del there
    with pytest.raises(RuntimeError, match="no block of device memory"):
        simulated_device.from_blob(address, 0)


def test_an_operation_that_does_not_end(stream: torch.Stream):
    """Catches a held stream that runs on, and one that holds up others."""
    with simulated_device.held():
        blocked = torch.accelerator.current_stream().record_event()
        with stream:
            torch.ones(4, device=DEVICE)
        stream.synchronize()
        assert not blocked.query()
    torch.accelerator.synchronize()
    assert blocked.query()


def test_memory_statistics_count_blocks():
    """Catches bytes that are not given back, or not counted."""
    torch.accelerator.empty_cache()
    before = torch.accelerator.memory_allocated(), torch.accelerator.memory_reserved()
    x = tensor(1 << 20)
    assert torch.accelerator.memory_allocated() - before[0] == 4 << 20
    del x
    torch.accelerator.empty_cache()
    assert (torch.accelerator.memory_allocated(), torch.accelerator.memory_reserved()) == before


# -- the host

DIES = """
import sys; sys.path.insert(0, {tests!r})
import ctypes, simulated_device, torch
simulated_device.load()
x = torch.ones(4, device="simulated:0")
torch.accelerator.synchronize()
print(ctypes.c_float.from_address(x.data_ptr()).value)
"""


def test_a_host_that_reads_device_memory_is_killed():
    """Catches code of the host that follows a pointer into device memory without an error."""
    died = subprocess.run(
        [sys.executable, "-c", DIES.format(tests=str(HERE))], capture_output=True, text=True, timeout=60
    )
    assert died.returncode < 0
    assert "the host touches memory of simulated:0" in died.stderr


def test_a_host_that_reads_before_the_copy_is_complete():
    """Catches a missing wait for a copy to page-locked memory."""
    host = torch.zeros(64, pin_memory=True)
    host.copy_(tensor(64), non_blocking=True)
    time.sleep(0.1)
    host.sum()
    finds(
        "the host reads page-locked memory that copy to the host on stream 0 of simulated:0 writes", "it has not waited"
    )


def test_a_host_that_writes_before_the_copy_is_complete():
    """Catches page-locked memory that is filled again too early; reading it is fine."""
    host = torch.zeros(64, pin_memory=True)
    there = torch.empty(64, device=DEVICE)
    there.copy_(host, non_blocking=True)
    host.sum()
    simulated_device.check()
    host.fill_(1)
    finds("the host writes page-locked memory that copy from the host", "reads, and it has not waited")


def test_a_host_that_waits_or_uses_other_bytes():
    """Catches false alarms: after a wait, and for bytes next to those of a copy."""
    host = torch.zeros(64, pin_memory=True)
    host[:32].copy_(tensor(32), non_blocking=True)
    assert host[32:].sum() == 0
    host[32:].fill_(2)
    simulated_device.check()
    torch.accelerator.synchronize()
    assert host.sum() == 96
    host.copy_(tensor(64), non_blocking=True)
    torch.accelerator.current_stream().synchronize()
    assert host.sum() == 64


def test_a_wait_of_another_thread_counts():
    """Catches false reports where one thread of the program waits for another one, by any lock."""
    host = torch.zeros(64, pin_memory=True)
    host.copy_(tensor(64), non_blocking=True)
    waits = threading.Thread(target=torch.accelerator.synchronize)
    waits.start()
    waits.join()
    assert host.sum() == 64
    host.zero_()


def test_two_streams_and_one_page_locked_block(stream: torch.Stream):
    """Catches a copy to page-locked memory that another stream still reads."""
    host = torch.zeros(64, pin_memory=True)
    there = torch.empty(64, device=DEVICE)
    there.copy_(host, non_blocking=True)
    with stream:
        host.copy_(tensor(64), non_blocking=True)
    finds("copy to the host on stream", "writes page-locked memory that copy from the host on stream 0", "reads")


def test_page_locked_memory_that_is_freed_too_early():
    """Catches page-locked memory that is freed during a copy from its middle; torch only knows of copies of whole
    tensors."""
    there = torch.empty(64, device=DEVICE)
    host = torch.ones(64, pin_memory=True)
    there.copy_(host, non_blocking=True)
    del host
    simulated_device.check()
    host = torch.ones(64, pin_memory=True)
    middle = torch.frombuffer(
        (__import__("ctypes").c_char * 128).from_address(host.data_ptr() + 64), dtype=torch.float32
    )
    there[:32].copy_(middle, non_blocking=True)
    del host, middle
    finds("page-locked memory is freed while copy from the host", "the host has not waited")


def test_the_count_of_a_block_of_work():
    """Catches waits and bytes that are not counted; the tests of the engine's costs depend on them."""
    x = tensor(1000)
    torch.accelerator.synchronize()
    with simulated_device.count() as counted:
        x.mul_(2)
        x.cpu()
        x.sum().item()
        torch.accelerator.synchronize()
    assert counted["fetches"] == 2 and counted["waits"] == 1 and counted["uploads"] == 0
    assert counted["bytes_read"] == 3 * 4000 + 4 and counted["bytes_written"] == 4000 + 4


class TwoStreams(nn.Module):
    """Runs one half on a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, waits: bool) -> torch.Tensor:
        main, side = torch.accelerator.current_stream(), torch.Stream(DEVICE)
        side.wait_stream(main)
        with side:
            right = self.right(x)
        left = self.left(x)
        if waits:
            main.wait_stream(side)
        x.record_stream(side)
        right.record_stream(main)
        return (left + right).sum()


@pytest.mark.parametrize("waits", [True, False])
def test_a_model_with_a_second_stream(waits: bool):
    """Catches a backward whose streams the check does not know: autograd runs each node on its forward's stream."""
    model = TwoStreams().to(DEVICE)
    loss = model(torch.ones(4, 8, device=DEVICE), waits)
    if not waits:
        finds("aten::add.out on stream 0", "reads memory that", "writes")
    loss.backward()
    assert model.right.weight.grad.sum().item() == 256
