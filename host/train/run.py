"""Training of the language model, for ``python -m host train``.

One H100 trains the default in 90 seconds; a CPU takes days, and ``--smoke`` a few seconds.

Each of ``batch`` lanes reads its own part of the shuffled documents, 512 tokens a step, and carries
its state from step to step; the state is zero where a document begins, as it is in use.
"""

import argparse
import json
import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from host.models.mmfreelm import write_model
from host.text.vocabulary import Vocabulary
from host.train.data import Documents, epoch_stream, prepare
from host.train.evaluate import ARITHMETICS, evaluate, fit_logit_constant
from host.train.export import to_model
from host.train.network import Network, Shape, Sites, head, mix_in, mix_out_and_ffn

__all__ = ["train"]

_WARM_UP = 200              # steps of linear warm-up
_FINAL_RATE = 0.02          # of the learning rate, at the end of its cosine
_CLIP = 1.0                 # norm of the gradient
_REPORTS = 40               # progress lines of a run
_CHECKPOINTS = 4            # models written during a run
_SMOKE_DOCUMENTS = 8        # of each part of the corpus

_METADATA: dict[str, str | tuple[str, ...]] = {
    "author": "The Tally authors",
    "license": "Apache-2.0",
    "description": "Ternary MatMul-free language model of English tales for children: MLGRU token "
                   "mixer, gated FFN with a ReLU gate, 3-trit tied embedding and head",
    "languages": ("en",),
    "datasets": ("Fairy tales: Lang, Andersen, Grimm and retold tales; public domain in the USA",
                 "Children's stories: 30 books of 1912 to 1922; public domain in the USA"),
}


class _Step:
    """One optimizer step over a fixed batch buffer; a CUDA graph on a GPU."""

    def __init__(self, network: Network, arguments: argparse.Namespace, end: int):
        self._network = network
        self._end = end
        self._l1 = arguments.l1
        device = network.embedding.device
        on_gpu = device.type == "cuda"
        self._dtype = torch.bfloat16 if on_gpu else torch.float32
        self._sites = Sites(dropout=arguments.dropout)
        self.tokens = torch.full((arguments.batch, arguments.length + 1), end, device=device)
        self.states = torch.zeros(network.shape.layers, arguments.batch, network.shape.width,
                                  device=device, dtype=self._dtype)
        self.loss = torch.zeros((), device=device)      # sum over the steps since it was cleared
        self._rate = torch.zeros((), device=device)
        self._kept = torch.ones((), device=device)      # what weight decay leaves of a weight
        self._functions: list[Callable] = [mix_in, mix_out_and_ffn, self._head_loss]
        if on_gpu:
            self._functions = [torch.compile(function) for function in self._functions]
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=self._rate if on_gpu else 0.0,
                                            betas=(0.9, 0.95), weight_decay=0.0, fused=on_gpu,
                                            capturable=on_gpu)
        self._graph = self._capture() if on_gpu else None

    def _head_loss(self, x, embedding, scale, targets):
        logits = head(x, embedding, scale, self._sites)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _run(self) -> None:
        inputs, targets = self.tokens[:, :-1], self.tokens[:, 1:]
        keep = (inputs != self._end).to(self._dtype)
        x, embedding, scale, states, _, l1 = self._network(
            inputs, keep, self.states, self._sites, layer_functions=self._functions[:2],
            dtype=self._dtype)
        loss = self._functions[2](x, embedding, scale, targets)
        (loss + self._l1 * l1).backward()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), _CLIP)
        with torch.no_grad():
            torch._foreach_mul_([*self._network.matrices()], self._kept)
            self.states.copy_(states)
            self.loss += loss.detach()
        self._optimizer.step()

    def _capture(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):       # compile and warm up, at learning rate 0
            for _ in range(3):
                self._optimizer.zero_grad(set_to_none=True)
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        for tensor in (self.loss, self.states):
            tensor.zero_()
        return graph

    def __call__(self, tokens: torch.Tensor, rate: float, decay: float) -> None:
        self.tokens.copy_(tokens)
        self._rate.fill_(rate)
        self._kept.fill_(1 - rate * decay)
        if self._graph is not None:
            self._graph.replay()
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.zero_grad(set_to_none=True)
            self._run()


def _rate(step: int, steps: int, peak: float) -> float:
    """Learning rate: linear warm-up, then a cosine."""
    warm_up = min(_WARM_UP, steps // 4)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    return peak * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def _write(network: Network, vocabulary: Vocabulary, arguments: argparse.Namespace, *,
           quantized: float = 1.0, exact: float = 1.0) -> None:
    """Write the model with its logit constants.

    L-Mul arithmetic begins with the constant of the quantized network; whoever evaluates it with
    the golden functions fits its own.
    """
    settings = " ".join(f"--{key} {value}" for key, value in sorted(vars(arguments).items())
                        if isinstance(value, int | float) and not isinstance(value, bool))
    metadata = {**_METADATA, "provenance": f"python -m host train {settings}"}
    write_model(arguments.out, to_model(network, vocabulary, {"lmul": quantized, "float": exact},
                                        arguments.name, metadata))


def _train(network: Network, vocabulary: Vocabulary, documents: Documents,
           arguments: argparse.Namespace) -> None:
    end = vocabulary.end_of_document
    step_function = _Step(network, arguments, end)
    device = network.embedding.device
    rng = np.random.default_rng(arguments.seed)
    split = documents.split()
    columns = (len(documents.tokens) + 1) // arguments.batch
    steps_an_epoch = (columns - 1) // arguments.length
    steps = max(4, round(arguments.epochs * steps_an_epoch))
    every = max(1, steps // _REPORTS)
    start = time.monotonic()
    for step in range(steps):
        position = step % steps_an_epoch
        if position == 0:
            epoch = torch.from_numpy(epoch_stream(split, end, arguments.batch, rng)).to(device)
            step_function.states.zero_()
        first = position * arguments.length
        step_function(epoch[:, first:first + arguments.length + 1],
                      _rate(step, steps, arguments.rate),
                      arguments.decay if step < steps // 2 else 0.0)
        if (step + 1) % every == 0 or step + 1 == steps:
            count = (step + 1) % every or every
            loss = float(step_function.loss) / count
            step_function.loss.zero_()
            seconds = time.monotonic() - start
            speed = (step + 1) * arguments.batch * arguments.length / seconds
            print(f"{arguments.out.stem}: step {step + 1}/{steps}, loss {loss:.4f}, "
                  f"{speed / 1e3:.0f} k tokens/s, {seconds:.0f} s", flush=True)
        if (step + 1) % (steps // _CHECKPOINTS) == 0:
            _write(network, vocabulary, arguments)


def _finish(network: Network, vocabulary: Vocabulary, parts: dict[str, Documents],
            arguments: argparse.Namespace) -> None:
    """Fit the logit constants, measure, and write the model and the report."""
    end = vocabulary.end_of_document
    constants, rows = {}, []
    for arithmetic, sites in ARITHMETICS.items():
        constant = fit_logit_constant(network, parts["calibration"], sites, end)
        result = evaluate(network, parts["heldout"], sites, end, (1.0, constant))
        constants[arithmetic] = constant
        rows.append({"arithmetic": arithmetic, "logit_constant": constant,
                     "bits_per_byte_as_trained": result.bits_per_byte[0],
                     "bits_per_byte": result.bits_per_byte[1], "density": result.density})
        print(f"{arguments.out.stem}: {arithmetic}: {result.bits_per_byte[1]:.4f} bits per byte "
              f"held out ({result.bits_per_byte[0]:.4f} without the logit constant "
              f"{constant:.3f}), FFN density {sum(result.density) / len(result.density):.4f}: "
              + " ".join(f"{share:.3f}" for share in result.density), flush=True)
    _write(network, vocabulary, arguments, quantized=constants["quantized"],
           exact=constants["float"])
    if arguments.report is not None:
        settings = {key: value if isinstance(value, int | float) else str(value)
                    for key, value in vars(arguments).items()}
        report = json.dumps({"settings": settings, "rows": rows}, indent=2)
        arguments.report.write_text(report + "\n")


def train(arguments: argparse.Namespace) -> None:
    """Train a model, measure it on held-out text, and write it.

    Parameters
    ----------
    arguments : Namespace
        As :mod:`host.cli.train` names them; without a ``device``, one is chosen.

    Raises
    ------
    CorpusError
        If the corpus cannot be read.
    """
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    vocabulary, parts = prepare(arguments.corpus, arguments.vocab, cache=arguments.cache,
                                limit=_SMOKE_DOCUMENTS if arguments.smoke else None)
    shape = Shape(len(vocabulary.tokens), arguments.width, arguments.layers, arguments.ffn)
    network = Network(shape).to(arguments.device)
    _train(network, vocabulary, parts["train"], arguments)
    _finish(network, vocabulary, parts, arguments)
