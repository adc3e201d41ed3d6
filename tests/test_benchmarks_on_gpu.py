"""The benchmarks run where they are told to, and read a GPU's time and memory there; seen without a GPU."""

import contextlib
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parent / "benchmarks"
META = torch.device("meta")  # stands in for a GPU: what is left on the host is an error there
NO_GPU = {"is_available": lambda: False}
TWO_GPUS = {"is_available": lambda: True, "device_count": lambda: 2, "set_device": lambda device: None}


@pytest.fixture(scope="module")
def made():
    sys.path.insert(0, str(FOLDER))
    names = ("bench_population", "bench_probes", "bench_rules", "devices", "measuring", "memory")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(FOLDER))


@pytest.fixture
def parsed(made, monkeypatch):
    """The arguments of a benchmark, on a machine whose ``torch.cuda`` is as given."""

    def parse(cuda, *arguments, default="cpu"):
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return made.devices.parsed(made.measuring.options("", device=default), arguments)

    return parse


@pytest.mark.parametrize(
    ("cuda", "arguments", "said"),
    [
        (NO_GPU, ["--device", "gpu"], "'gpu' is no device: take cpu, cuda or cuda:1"),
        (NO_GPU, ["--device", "cuda:x"], "'cuda:x' is no device"),
        (NO_GPU, ["--device", "mps"], "'mps' has no events"),
        (NO_GPU, ["--device", "cuda"], "'cuda' is not here"),
        (TWO_GPUS, ["--device", "cuda:2"], "'cuda:2' is not here: the last of 2 is cuda:1"),
        (TWO_GPUS, ["--device", "cuda", "--clock", "process"], "take events or wall"),
        (NO_GPU, ["--clock", "events"], "events are a GPU's"),
    ],
)
def test_a_device_or_clock_that_is_not_there_is_one_line(parsed, capsys, cuda, arguments, said):
    with pytest.raises(SystemExit) as ended:
        parsed(cuda, *arguments)
    assert ended.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_benchmark_of_gpus_alone_says_so_where_there_is_none(parsed, capsys):
    with pytest.raises(SystemExit):
        parsed(NO_GPU, default="cuda")
    assert "'cuda' is not here" in capsys.readouterr().err


def test_a_gpu_is_timed_by_its_events_and_a_processor_by_the_wall(made, parsed):
    here = parsed(NO_GPU)
    assert (here.device, here.clock) == (torch.device("cpu"), "wall")
    assert here.watch.mark is made.devices.CLOCKS["wall"]
    there = parsed(TWO_GPUS, "--device", "cuda:1")
    assert (there.device, there.clock) == (torch.device("cuda", 1), "events")
    assert isinstance(there.watch, made.devices.EventWatch)
    waiting = parsed(TWO_GPUS, "--device", "cuda", "--clock", "wall")
    assert (waiting.device, waiting.clock) == (torch.device("cuda", 0), "wall")
    assert isinstance(waiting.watch, made.devices.WaitingWatch)


class Cuda:
    """A GPU that does what it was given only when waited for; an event happens a quarter of a second after the one before."""

    def __init__(self):
        self.recorded, self.waits = [], 0

    def Event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def synchronize(self):
        self.waits += 1
        for i, event in enumerate(self.recorded):
            event.milliseconds = 250 * i


class Event:
    def __init__(self, cuda):
        self.cuda, self.milliseconds = cuda, None

    def record(self):
        self.cuda.recorded.append(self)

    def elapsed_time(self, end):
        return end.milliseconds - self.milliseconds


def test_events_are_read_after_the_last_of_a_group(made):
    cuda, count = Cuda(), [0, 0]

    def step(which):
        assert cuda.waits == 0, "waited within a group"
        count[which] += 1

    steps = [lambda which=which: step(which) for which in (0, 1)]
    assert made.bench_probes._ratio(*steps, 10, made.devices.EventWatch(cuda)) == 1.0  # three stretches each
    assert count == [10, 10]
    assert len(cuda.recorded) == 12
    assert cuda.waits > 0
    assert made.devices.EventWatch(cuda).seconds(cuda.recorded[0], cuda.recorded[3]) == 0.75


def test_the_walls_clock_waits_for_the_gpu_at_both_ends(made, monkeypatch):
    done, now = [], iter([1.0, 3.0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    monkeypatch.setattr(made.devices.time, "perf_counter", lambda: done.append("read") or next(now))
    watch = made.devices.WaitingWatch()
    start, stop = watch.mark(), watch.mark()
    assert watch.seconds(start, stop) == 2.0
    assert done == ["waited", "read"] * 2


class Memory:
    """A GPU's: a workspace comes with the first step and stays; a net holds 10 bytes while it is there, a step takes 5 more."""

    def __init__(self):
        self.held = self.highest = 0

    def step(self):
        self.held = self.held if self.held > 100 else self.held + 100
        self.highest = max(self.highest, self.held + 5)

    @contextlib.contextmanager
    def start(self):
        self.held += 10
        yield self.step
        self.held -= 10

    def reset(self, device):
        self.highest = self.held


def test_the_peak_on_a_gpu_leaves_out_what_the_libraries_keep(made, monkeypatch):
    memory = Memory()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory.held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory.highest)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", memory.reset)
    for _ in range(2):
        assert made.memory.peak(memory.start, torch.device("cuda")) == 15
    assert memory.held == 100


@pytest.mark.parametrize("rule", [None, "fa", "kolen_pollack", "usf", "frsf"])
def test_a_step_by_a_rule_is_all_on_the_device(made, rule):
    made.bench_rules.step_of(rule, META)()


def test_a_step_to_be_recorded_is_all_on_the_device(made):
    probes = made.bench_probes
    bare, *_ = probes.CASES
    with probes.recorded("fa", bare, device=META) as step:
        step()
    x, y = next(probes.batches_of(1, META))
    assert x.device == y.device == META


def test_the_plain_loop_is_all_on_the_device(made):
    population = made.bench_population
    task = population.digits()
    spec = population.RunSpec(hidden=(32,), batch_size=8, steps=1)
    population.plain_loop(spec, task, META)()


def test_the_large_population_is_a_case_of_gpus(made, parsed, capsys):
    bench = made.bench_population
    parser = made.measuring.options("", device="cpu")
    (large,) = bench.ON_A_GPU
    here, there = (SimpleNamespace(device=torch.device(name), cases=[]) for name in ("cpu", "cuda"))
    assert bench.chosen(parser, here) == list(bench.CASES)
    assert bench.chosen(parser, there) == [*bench.CASES, large]
    here.cases = [large]
    with pytest.raises(SystemExit):
        bench.chosen(parser, here)
    assert "needs a GPU" in capsys.readouterr().err


def test_the_machine_of_a_gpu_names_it(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA X {device.index}")
    there = made.measuring.machine(torch.device("cuda", 1))
    assert there == {"gpu": "NVIDIA X 1"} | made.measuring.machine()
