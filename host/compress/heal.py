"""Healing: what a compressed model has forgotten is learned again from the model that it was.

The cores of all chains are trained with their rounding to trit planes in the forward pass (the
gradient passes the rounding unchanged), on the distributions of the float reference for a text: the
loss is their Kullback-Leibler divergence. Scales, factors and bonds stay what they were, so that
the result is integers in the same image. Needs PyTorch; SmolLM2 takes a GPU a minute, and two CPU
cores that have bf16 a few.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from host.compress.chains import Choice, Layers
from host.models.mpo_llama import LISTS, ChainMatrix, MpoLlamaLM
from host.models.planes import PlaneMatrix
from host.models.transformer import Attention
from host.text.tokenizer import ByteTokenizer
from sim.golden.trits import plane_limit

__all__ = ["Healed", "heal", "pack_tokens"]

_WARM_UP = 0.1      # of the steps, linear
_FINAL_RATE = 0.1   # of the learning rate, at the end of its cosine
_CLIP = 1.0         # norm of the gradient
_ORIGINAL = 16      # steps of the original that are timed


class _Round(torch.autograd.Function):
    """Round to integers within a limit; the gradient passes inside of it."""

    @staticmethod
    def forward(ctx, x: Tensor, limit: int) -> Tensor:     # type: ignore[override]
        ctx.save_for_backward(x.abs() <= limit + 0.5)
        return x.round().clamp(-limit, limit)

    @staticmethod
    def backward(ctx, gradient: Tensor):                    # type: ignore[override]
        inside, = ctx.saved_tensors
        return gradient * inside, None


class _Core(nn.Module):
    """A core's numbers in units of its integers."""

    scale: Tensor

    def __init__(self, numbers: NDArray, found: PlaneMatrix, limit: int):
        super().__init__()
        scale = found.scale * found.factors[:, np.newaxis]
        self.limit = limit
        self.units = nn.Parameter(torch.tensor(numbers / scale, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self) -> Tensor:
        """Return the matrix that is multiplied by."""
        return _Round.apply(self.units, self.limit) * self.scale

    def integers(self) -> NDArray[np.integer]:
        """Return what the numbers have become."""
        rounded = self.units.detach().round().clamp(-self.limit, self.limit)
        return rounded.cpu().numpy().astype(np.int8 if self.limit < 128 else np.int16)


class _Floats(nn.Module):
    """A matrix that is trained, or not, without rounding."""

    def __init__(self, numbers: NDArray):
        super().__init__()
        self.units = nn.Parameter(torch.tensor(numbers, dtype=torch.float32))

    def forward(self) -> Tensor:
        """Return the matrix."""
        return self.units


#: Cores, and the vectors that each is multiplied by.
_Chain = tuple[Sequence["_Core | _Floats"], tuple[int, ...]]


class _Network(nn.Module):
    """The machine's network of a Llama in floating point; docs/numerics.md, sections 11 and 12."""

    powers: Tensor
    head_powers: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, attention: Attention, powers: Sequence[Mapping[str, NDArray]],
                 head_powers: NDArray, embedding: nn.Module, head: nn.Module,
                 layers: Sequence[Mapping[str, _Chain]]):
        super().__init__()
        self.attention = attention
        self.embedding, self.head = embedding, head
        self.layers = layers
        # Only to be found by PyTorch.
        self.registered = nn.ModuleList(core for layer in layers for cores, _ in layer.values()
                                        for core in cores)
        stacked = np.stack([[found[name] for name in LISTS] for found in powers])
        for name, numbers in zip(("powers", "head_powers", "cosine", "sine"),
                                 (stacked, head_powers, *attention.tables()), strict=True):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))

    def _multiply(self, index: int, name: str, x: Tensor) -> Tensor:
        for core, vectors in zip(*self.layers[index][name], strict=True):
            shape = x.shape[:-1]
            if vectors == 1:
                x = F.linear(x, core())
            else:
                x = x.reshape(*shape, -1, vectors).transpose(-1, -2)
                x = F.linear(x, core()).reshape(*shape, -1)
        return x

    def _norm(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.attention.epsilon)

    def _rotate(self, x: Tensor, heads: int) -> Tensor:
        x = x.float().reshape(*x.shape[:-1], heads, 2, -1)
        a, b = x[..., 0, :], x[..., 1, :]
        length = x.shape[1]
        cosine, sine = (table[:length, None] for table in (self.cosine, self.sine))
        turned = torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)
        return turned.transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape (documents, steps, vocabulary)."""
        shape = self.attention
        x = F.embedding(tokens, self.embedding())
        for index in range(len(self.layers)):
            y = self._norm(x) * self.powers[index, 0]
            query = self._rotate(self._multiply(index, "attn_q", y), shape.heads)
            key = self._rotate(self._multiply(index, "attn_k", y), shape.kv_heads)
            value = self._multiply(index, "attn_v", y)
            value = value.reshape(*value.shape[:-1], shape.kv_heads, -1).transpose(1, 2)
            group = shape.heads // shape.kv_heads
            key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
            # Scores are in octaves.
            mixed = F.scaled_dot_product_attention(
                query.to(value.dtype), key.to(value.dtype), value, is_causal=True,
                scale=math.log(2))
            mixed = mixed.transpose(1, 2).reshape(*tokens.shape, -1)
            x = x + self._multiply(index, "attn_output", mixed).float()
            y = self._norm(x) * self.powers[index, 1]
            hidden = (self._multiply(index, "ffn_up", y)
                      * F.silu(self._multiply(index, "ffn_gate", y)))
            x = x + self._multiply(index, "ffn_down", hidden).float()
        return F.linear(self._norm(x) * self.head_powers, self.head())


def _floating(layers: Layers) -> _Network:
    """Return the model as it was read."""
    model = layers.model
    return _Network(model.attention, layers.powers, model.head_powers, _Floats(model.embedding),
                    _Floats(layers.head),
                    [{name: ([_Floats(matrix)], (1,)) for name, matrix in matrices.items()}
                     for matrices in layers.matrices])


def pack_tokens(tokenizer: ByteTokenizer, start: int, documents: Sequence[str], count: int,
                steps: int, seed: int = 1) -> NDArray[np.int64]:
    """Cut documents, in any order, into rows of ``1 + steps`` tokens that begin with ``start``.

    Raises
    ------
    ValueError
        If the text is not enough for ``count`` rows.
    """
    rows: list[list[int]] = []
    for index in np.random.default_rng(seed).permutation(len(documents)):
        tokens = tokenizer.encode(documents[index])
        for first in range(0, len(tokens) - steps + 1, steps):
            rows.append([start, *tokens[first:first + steps]])
        if len(rows) >= count:
            return np.array(rows[:count])
    raise ValueError(f"Text for healing must fill {count} rows of {steps} tokens, "
                     f"not {len(rows)} (try fewer steps or a smaller batch)")


@dataclasses.dataclass(frozen=True)
class Healed:
    """A model that was healed, and what that took.

    Attributes
    ----------
    model : MpoLlamaLM
    first_loss, last_loss : float
        Divergence from the reference, nats a token, means of a tenth of the steps.
    seconds_per_step : float
        Of healing, the reference's forward pass included; the median.
    original_seconds_per_step : float
        Of training the original's matrices in the same way.
    """

    model: MpoLlamaLM
    first_loss: float
    last_loss: float
    seconds_per_step: float
    original_seconds_per_step: float


def heal(layers: Layers, choices: Sequence[Mapping[str, Choice]], embedding_planes: int,
         compressed: MpoLlamaLM, tokens: NDArray[np.integer], *, steps: int, batch: int,
         rate: float, device: str,
         report: Callable[[int, float], None] = lambda step, loss: None) -> Healed:
    """Train the cores of a compressed model.

    Parameters
    ----------
    layers : Layers
        The original.
    choices : sequence of mapping
        Of each layer.
    embedding_planes : int
    compressed : MpoLlamaLM
        Made of the choices and planes.
    tokens : integer array, shape (rows, 1 + steps)
    steps, batch : int
        Optimizer's steps, and rows in each of them.
    rate : float
        The largest learning rate, of numbers in units of their matrix' root mean square.
    device : str
        Of PyTorch.
    report : callable
        Called with the steps that are done, and the loss.
    """
    torch.manual_seed(1)
    teacher = _floating(layers).to(device).requires_grad_(False)
    student_layers = []
    for index, chains in enumerate(compressed.layers):
        found: dict[str, _Chain] = {}
        for name, chain in chains.items():
            choice = choices[index][name]
            numbers = layers.tensors(index, name, choice).matrices()
            cores = [_Core(matrix, core, plane_limit(choice.planes)) for matrix, core
                     in zip(numbers, chain.cores, strict=True)]
            found[name] = cores, chain.shape.vectors
        student_layers.append(found)
    model = layers.model
    limit = plane_limit(embedding_planes)
    head = _Core(layers.head, PlaneMatrix(
        compressed.head, compressed.logit_scales["lmul"], np.ones(len(compressed.head))), limit)
    embedding = _Core(model.embedding, compressed.embedding, limit)
    student = _Network(model.attention, layers.powers, model.head_powers, embedding, head,
                       student_layers).to(device)

    losses: list[float] = []
    data = torch.tensor(tokens, device=device)
    seconds = _train(student, teacher, data, steps, batch, rate, losses, report)
    original = _floating(layers).to(device)
    original_seconds = _train(original, teacher, data, min(steps, _ORIGINAL), batch, 0.0, [],
                              lambda *_: None)

    healed = []
    for index, chains in enumerate(compressed.layers):
        layer: dict[str, ChainMatrix] = {}
        for name, chain in chains.items():
            trained = [module.integers() for module in student.layers[index][name][0]
                       if isinstance(module, _Core)]
            layer[name] = ChainMatrix(chain.shape, tuple(
                dataclasses.replace(core, weights=weights)
                for core, weights in zip(chain.cores, trained, strict=True)))
        healed.append(layer)
    tenth = max(1, len(losses) // 10)
    return Healed(
        dataclasses.replace(
            compressed, layers=tuple(healed), head=head.integers(),
            embedding=dataclasses.replace(compressed.embedding, weights=embedding.integers())),
        float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])), seconds,
        original_seconds)


def _train(student: _Network, teacher: _Network, data: Tensor, steps: int, batch: int,
           rate: float, losses: list[float], report: Callable[[int, float], None]) -> float:
    """Train a network; return the median of the seconds that a step took."""
    groups = [{"params": [parameter], "size": float(parameter.detach().square().mean().sqrt())}
              for parameter in student.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0,
                                  fused=True)
    half = _has_bf16(data.device)
    warm = max(1, round(_WARM_UP * steps))
    seconds = []
    for step in range(steps):
        begins = time.monotonic()
        if step < warm:
            share = (step + 1) / warm
        else:
            done = (step - warm) / max(1, steps - warm)
            share = _FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share * group["size"]
        rows = torch.arange(step * batch, (step + 1) * batch, device=data.device) % len(data)
        part = data[rows, :-1]
        with torch.autocast(data.device.type, torch.bfloat16, enabled=half):
            with torch.no_grad():
                expected = F.log_softmax(teacher(part).float(), -1)
            found = F.log_softmax(student(part).float(), -1)
        loss = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.monotonic() - begins)       # loss.item() has waited for the device
        report(step + 1, losses[-1])
    return float(np.median(seconds))


def _has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers, which is slow where it is only emulated."""
    if device.type != "cpu":
        return device.type == "cuda"
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
