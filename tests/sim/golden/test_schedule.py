"""The derived cycles of a program, against sums and formulas for programs that are easy to see."""

import itertools
import math
from collections import deque

import numpy as np
import pytest

from host.compiler.compile import compile_model
from host.models.examples import tiny_model
from hw.config import BURST_TRANSFERS, GEARBOX_DEPTH, AcceleratorConfig, EngineConfig
from hw.isa import Function, Instruction, Opcode
from hw.order import RESULT_ROOM
from sim.golden.gearbox import port_transfers
from sim.timing import program as schedule
from sim.timing.program import LIST_LATENCY, WORD_LATENCY, token_cycles
from sim.timing.units import (
    INSTRUCTION_CYCLES,
    SCALAR_CYCLES,
    decode_cycles,
    engine_cycles,
    engine_period,
    instruction_cycles,
    load_cycles,
    norm_cycles,
    quantize_cycles,
    store_cycles,
    top_k_cycles,
    vector_cycles,
    write_back_cycles,
)

CONFIG = AcceleratorConfig()
STOP = Instruction(opcode=Opcode.STOP)
TOKEN = Instruction(opcode=Opcode.TOKEN)


def vector(count):
    return Instruction(opcode=Opcode.VECTOR, function=Function.ADD, count=count)


def pack(count, function=Function.DENSE):
    return Instruction(opcode=Opcode.QUANTIZE, function=function, target=1, count=count)


def matmul(rows, columns, planes=1):
    return Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=planes,
                       count=columns)


def drain(rows):
    return Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, count=rows)


def load(count):
    return Instruction(opcode=Opcode.LOAD, count=count)


class TestInstructionCycles:
    @pytest.mark.parametrize(("instruction", "elements"), [
        (STOP, 0), (vector(256), vector_cycles(32)), (drain(256), write_back_cycles(32)),
        (drain(257), write_back_cycles(33)), (load(256), load_cycles(CONFIG, 32)),
        (Instruction(opcode=Opcode.STORE, count=8), store_cycles(CONFIG, 1)),
        (pack(256), quantize_cycles(CONFIG, 32 * [8])),
        (Instruction(opcode=Opcode.NORM, count=256), norm_cycles(CONFIG, 32))])
    def test_one(self, instruction, elements):
        assert instruction_cycles(CONFIG, instruction) == (
            INSTRUCTION_CYCLES[instruction.opcode] + elements)

    def test_decoding_takes_longer(self):
        """The next instruction is decoded meanwhile: at least 5 cycles, 21 for a large matrix."""
        for instruction in (TOKEN, matmul(256, 256)):
            assert instruction_cycles(CONFIG, instruction) == 5
            assert instruction_cycles(CONFIG, instruction, following=matmul(256, 256)) == (
                decode_cycles(CONFIG, matmul(256, 256))) == 21

    def test_kept(self):
        instruction = Instruction(opcode=Opcode.TOP_K, count=4096)
        assert instruction_cycles(CONFIG, instruction, kept=9) == (
            INSTRUCTION_CYCLES[Opcode.TOP_K] + top_k_cycles(CONFIG, 4096, 9))


class TestSimplePrograms:
    def test_vectors(self):
        program = [vector(64), vector(256), pack(512), STOP]
        cost = token_cycles(CONFIG, program)
        assert cost.cycles == sum(instruction_cycles(CONFIG, item) for item in program)
        assert (cost.limit, cost.transfers, cost.useful_bits) == ("execution", 0, 0)
        np.testing.assert_array_equal(
            cost.idle, [instruction_cycles(CONFIG, item) for item in program])

    def test_body(self):
        program = [vector(64), vector(256), STOP]
        cost = token_cycles(CONFIG, program, body=1)
        assert cost.cycles == sum(instruction_cycles(CONFIG, item) for item in program[1:])
        assert cost.idle[0] == 0
        assert cost.idle.shape == (3,)

    @pytest.mark.parametrize("latency", [0, 20, 200])
    def test_token_waits_for_its_column(self, latency):
        """Nothing runs ahead of a list that is not known: the whole latency shows."""
        program = [TOKEN, matmul(256, 4096, 3), drain(256), STOP]
        cost = [token_cycles(CONFIG, program, latency=value).cycles for value in (0, latency)]
        assert cost[1] - cost[0] == latency
        assert token_cycles(CONFIG, program).transfers == 20
        assert token_cycles(CONFIG, program).useful_bits == pytest.approx(1.6 * 256 * 3)

    @pytest.mark.parametrize("rows", [256, 768, 2048])
    @pytest.mark.parametrize("refresh", [0.0, 0.01])
    def test_port_bound(self, rows, refresh):
        """Lists take less time than a matrix: the port never pauses."""
        program = [item for _ in range(8)
                   for item in (pack(256), matmul(rows, 1024), drain(rows))] + [STOP]
        cost = token_cycles(CONFIG, program, refresh=refresh)
        transfers = 8 * port_transfers(CONFIG.engine, 1024 * rows // 64)
        assert cost.transfers == transfers
        assert cost.cycles == pytest.approx(transfers / (1 - refresh), rel=1e-3)
        assert cost.limit == "memory port"
        # 64 trits of 1.6 bits in 13 bytes.
        assert cost.port_utilization(CONFIG) == pytest.approx(12.8 / 13, rel=1e-3)

    def test_parts(self):
        """Rows of one product, taken by several WRITE_BACKs: nothing else is waited for."""
        listed = pack(256, Function.SPARSE), matmul(768, 256)
        program, whole = [*listed, drain(256), drain(512), STOP], [*listed, drain(768), STOP]
        parts, once = (token_cycles(CONFIG, item) for item in (program, whole))
        assert parts.transfers == once.transfers
        assert parts.cycles - once.cycles == instruction_cycles(CONFIG, drain(0))

    def test_engine_bound(self):
        """A port that is wide enough: products follow one another as fast as the engine can."""
        config = AcceleratorConfig(engine=EngineConfig(port_bytes=32))
        program = [pack(256), *3 * [matmul(256, 256)], *3 * [drain(256)], STOP]
        cost = token_cycles(config, program)
        period = engine_period(config.engine, rows=256, columns=256)
        assert cost.engine == 3 * period
        assert cost.limit == "engine"
        # Draining begins while the engine still delivers.
        rest = write_back_cycles(0) + sum(
            instruction_cycles(config, item) for item in (pack(256), STOP))
        assert 3 * period + rest <= cost.cycles <= 3 * period + rest + LIST_LATENCY + 16

    def test_two_groups_pause(self):
        config = AcceleratorConfig(engine=EngineConfig(port_bytes=32))
        program = [pack(256), matmul(128, 256), drain(128), STOP]
        other = [pack(256), matmul(192, 256), drain(192), STOP]
        two, three = (token_cycles(config, item).cycles for item in (program, other))
        assert abs(two - three) <= 16

    def test_memory_latency_is_hidden_by_reading_ahead(self):
        program = [pack(256), matmul(256, 256), drain(256), STOP]
        near, far = (token_cycles(CONFIG, program, latency=latency).cycles
                     for latency in (0, 100))
        assert near == far

    def test_gearbox_hides_execution(self):
        """What the gearbox holds pays for vectors.

        The queue before it does not: what it holds reaches the engine no faster than the port.
        """
        def cycles(count, words=1024):
            program = [*count // 1024 * [vector(1024)], pack(64), matmul(256, 1024), drain(256),
                       STOP]
            return token_cycles(AcceleratorConfig(queue_words=words), program).cycles

        matrix = port_transfers(CONFIG.engine, 4096)
        one = instruction_cycles(CONFIG, vector(1024))
        assert cycles(0) == cycles(1024) == cycles(2048) == matrix
        # The port waits from when the gearbox is full until the engine begins.
        reach = (GEARBOX_DEPTH - 1) * CONFIG.engine.word_bytes // CONFIG.port_bytes
        rest = sum(instruction_cycles(CONFIG, item) for item in (pack(64), drain(256), STOP))
        assert cycles(16384) == pytest.approx(16 * one + rest + matrix - reach, abs=48)
        assert cycles(16384, 256) == cycles(16384)

    def test_load_waits_for_the_words_before_it(self):
        """A LOAD behind a MATMUL comes when the matrix has left the queue."""
        matrix = port_transfers(CONFIG.engine, 4096)
        program = [pack(1024), matmul(256, 1024), load(256), drain(256), STOP]
        cost = token_cycles(CONFIG, program)
        assert cost.transfers == matrix + 64
        assert cost.cycles == pytest.approx(matrix + 64, abs=700)

    def test_store_is_a_fence(self):
        store = Instruction(opcode=Opcode.STORE, count=256)
        program = [vector(256), load(256), STOP]
        fenced = [vector(256), store, load(256), STOP]
        for latency in (0, 50):
            assert token_cycles(CONFIG, program, latency=latency).cycles == sum(
                instruction_cycles(CONFIG, item) for item in program)
            assert token_cycles(CONFIG, fenced, latency=latency).cycles >= sum(
                instruction_cycles(CONFIG, item) for item in fenced) + latency

    def test_sparse(self):
        program = [pack(768, Function.SPARSE), matmul(256, 768), drain(256), STOP]
        dense, half, none = (token_cycles(CONFIG, program, density=density)
                             for density in (1.0, 0.5, 0.0))
        assert (dense.transfers, half.transfers, none.transfers) == (768 * 7, 384 * 7, 0)
        # Half as many columns, and half as many entries; a word without one takes a cycle.
        assert dense.cycles - half.cycles == pytest.approx(384 * 7 + 768 - 385, abs=8)
        assert none.cycles < half.cycles - 384 * 7 + 32

    def test_masked(self):
        """The sparsity policy comes on top; of the norms only what outlasts the first pass."""
        listed = matmul(256, 256), drain(256), STOP
        mask = {"function": Function.KEEP_TOP_K, "target": 1, "count": 256, "constant": 128}
        plain, masked = (Instruction(opcode=Opcode.QUANTIZE, **mask, b=b) for b in (0, 512))
        counts = schedule.ListCounts(found=256, kept=128)
        sparse, without, with_norms = (
            token_cycles(CONFIG, [*program, *listed], lists={len(program) - 1: counts})
            for program in ([pack(256, Function.SPARSE)], [plain], [load(256), masked]))
        assert sparse.transfers == without.transfers == with_norms.transfers - 64 == 128 * 7
        selected = 28 + schedule.PASSES * (256 // 8 + 23) + 128
        assert without.cycles - sparse.cycles == pytest.approx(selected - 2, abs=1)
        more = (schedule.PASSES_WITH_NORMS - schedule.PASSES) * (256 // 8 + 23)
        assert more < with_norms.cycles - without.cycles < more + load_cycles(CONFIG, 32) / 2

    def test_turnaround(self):
        program = [vector(64), STOP]
        waiting, ready = (token_cycles(CONFIG, program, turnaround=turnaround).cycles
                          for turnaround in (90, 0))
        assert waiting - ready == 90


class Stepper:
    """The same rules, one cycle after the other."""

    def __init__(self, config, program, latency):
        self.config, self.program, self.latency = config, program, latency
        self.now = 0
        self.items = []             # reads that are known of, in order
        self.queue = deque()        # (arrival, item) of transfers sent that have not left the queue
        self.words = deque()        # when each word in the gearbox can be taken
        self.taken = 0              # words
        self.jobs = deque()         # products that the engine has not begun
        self.products = deque()     # ... that are not drained
        self.idle_at = 0            # the engine begins the next job
        self.lists = deque()        # jobs whose columns were not asked for
        self.listed_at = 0          # the engine takes the next list
        self.asked = 0              # matrices whose columns were
        self.stops = []

    def run(self, tokens):
        """Cycles of the last token."""
        engine, gearbox, port = self.engine(), self.gearbox(), self.port()
        for _ in self.execution(tokens):
            next(port)
            self.now += 1
            next(engine)
            self.ask()
            next(gearbox)
        return self.stops[-1] - self.stops[-2]

    def plan(self):
        """Items of one token; prefetch knows the program."""
        engine, listed = self.config.engine, None
        for instruction in self.program:
            if instruction.opcode in (Opcode.TOKEN, Opcode.QUANTIZE):
                listed = instruction.opcode
            elif instruction.opcode is Opcode.LOAD:
                self.items.append({"transfers": 2 * instruction.count // engine.port_bytes,
                                   "words": 0, "known": 0, "sent": 0, "left": 0})
            elif instruction.opcode is Opcode.MATMUL:
                asked = listed is Opcode.TOKEN
                words = instruction.b * engine.groups(instruction.a)
                words *= 1 if asked else instruction.count
                self.items.append({"transfers": port_transfers(engine, words), "words": words,
                                   "known": math.inf if asked else 0, "sent": 0, "left": 0})

    def port(self):
        """Send a transfer a cycle; a burst waits for room."""
        burst = min(BURST_TRANSFERS, self.config.queue_words // 4)
        current = 0
        while True:
            while current == len(self.items):
                self.plan()
            item = self.items[current]
            size = min(burst, item["transfers"] - item["sent"])
            while (self.now < item["known"]
                   or len(self.queue) + size > self.config.queue_words):
                yield
            for _ in range(size):
                self.queue.append((self.now + self.latency, item))
                item["sent"] += 1
                yield
            current += item["sent"] == item["transfers"]

    def gearbox(self):
        """Take a transfer of a matrix a cycle, while there is room for the word that it begins."""
        engine = self.config.engine
        size, port = engine.word_bytes, engine.port_bytes
        room = (GEARBOX_DEPTH - 1) * max(size, port) // size
        before = 0                  # words of all matrices before
        while True:
            if self.queue and self.queue[0][0] <= self.now and self.queue[0][1]["words"]:
                item = self.queue[0][1]
                begins = before + min(item["left"] * port // size, item["words"] - 1)
                if begins - room < self.taken:
                    self.queue.popleft()
                    complete = item["left"] * port // size
                    item["left"] += 1
                    complete = min(item["left"] * port // size, item["words"]) - complete
                    self.words.extend(complete * [self.now + schedule.WORD_LATENCY])
                    if item["left"] == item["transfers"]:
                        before += item["words"]
            yield

    def matrix(self, number):
        """Item of a matrix."""
        while len([item for item in self.items if item["words"]]) <= number:
            self.plan()
        return [item for item in self.items if item["words"]][number]

    def ask(self):
        """Ask for the columns of a list when the engine takes it."""
        if self.lists and self.now >= max(self.listed_at,
                                          self.lists[0]["queued"] + schedule.LIST_LATENCY):
            self.lists.popleft()
            item = self.matrix(self.asked)
            self.asked += 1
            self.listed_at = math.inf
            if item["known"] == math.inf:
                item["known"] = self.now + schedule.COLUMN_LATENCY

    def engine(self):
        """Multiply one product after the other."""
        engine = self.config.engine
        matrices = 0
        while True:
            while not self.jobs or self.now < max(self.idle_at,
                                                  self.jobs[0]["queued"] + schedule.LIST_LATENCY):
                yield
            job = self.jobs.popleft()
            item = self.matrix(matrices)
            matrices += 1
            if self.asked < matrices:
                self.ask()
            self.listed_at = self.now       # later for long lists, behind which none is a token's
            shape = {"rows": job["rows"], "columns": job["columns"], "planes": job["planes"]}
            for _ in range(engine.groups(job["rows"]) + 1):
                yield
            for _ in range(item["words"]):
                while not self.words or self.words[0] > self.now:
                    yield
                self.words.popleft()
                self.taken += 1
                yield
            results = engine.result_transfers(job["rows"])
            self.idle_at = self.now + 2 + results
            job["result"] = (self.idle_at - results + engine_cycles(engine, **shape)
                             - engine_period(engine, **shape))

    def execution(self, tokens):
        """Execute instruction after instruction."""
        config = self.config
        asked = False
        program = tokens * self.program
        for instruction, following in itertools.zip_longest(program, program[1:]):
            # Decoding the next token's first instruction begins with the token.
            following = None if instruction.opcode is Opcode.STOP else following
            opcode, count = instruction.opcode, instruction.count
            kept = 0
            if opcode is Opcode.TOP_K:
                kept = min(count,
                           round(config.top_k * (1 + math.log(max(count / config.top_k, 1)))))
            ends = self.now + instruction_cycles(config, instruction, kept=kept,
                                                 following=following)
            if opcode in (Opcode.TOKEN, Opcode.QUANTIZE):
                asked = opcode is Opcode.TOKEN
            elif opcode is Opcode.MATMUL:
                job = {"rows": instruction.a, "planes": instruction.b,
                       "queued": self.now + INSTRUCTION_CYCLES[Opcode.MATMUL],
                       "columns": 1 if asked else count, "result": math.inf}
                self.jobs.append(job)
                self.lists.append(job)
                self.products.append(job)
            elif opcode in (Opcode.WRITE_BACK, Opcode.TOP_K):
                job = self.products.popleft()
                for _ in range(SCALAR_CYCLES):
                    yield
                waited = -self.now
                while self.now < job["result"]:
                    yield
                ends += waited + self.now
                results = config.engine.result_transfers(count)
                self.idle_at = max(self.idle_at, self.now + results - RESULT_ROOM)
            elif opcode is Opcode.LOAD:
                transfers = 2 * count // config.port_bytes
                for _ in range(transfers):
                    while (not self.queue or self.queue[0][0] > self.now
                           or self.queue[0][1]["words"]):
                        yield
                    self.queue.popleft()
                    yield
                after = load_cycles(config, count // config.vector_lanes) - transfers
                ends = max(ends, self.now + after + INSTRUCTION_CYCLES[Opcode.LOAD])
            while self.now < ends:
                yield
            if opcode is Opcode.STOP:
                self.stops.append(self.now)


@pytest.mark.parametrize(("config", "latency"), [
    (CONFIG, 20), (AcceleratorConfig(queue_words=64), 300),
    (AcceleratorConfig(engine=EngineConfig(lanes=32, accumulator_depth=4, port_bytes=4)), 3),
    (AcceleratorConfig(engine=EngineConfig(port_bytes=32)), 20)])
def test_stepper(config, latency):
    """The recurrence against a walk cycle by cycle, on a model of every instruction in use."""
    image = compile_model(tiny_model(layers=1), config)
    body = image.program.body
    cost = token_cycles(config, image.program.instructions, body, latency=latency)
    stepper = Stepper(config, image.program.instructions[body:], latency)
    assert stepper.run(3) == cost.cycles


@pytest.mark.parametrize("config", [
    CONFIG, AcceleratorConfig(queue_words=64),
    AcceleratorConfig(engine=EngineConfig(lanes=32, accumulator_depth=4, port_bytes=4))])
def test_bounds(config):
    """No resource does more than there are cycles, and some do almost as much."""
    image = compile_model(tiny_model(), config)
    cost = token_cycles(config, image.program.instructions, image.program.body)
    longest = max(cost.port, cost.engine, cost.execution)
    assert longest <= cost.cycles <= 1.5 * longest
    assert cost.cycles <= cost.port + cost.engine + cost.execution + 20 * WORD_LATENCY
    assert cost.idle.sum() == pytest.approx(cost.cycles - cost.port)
