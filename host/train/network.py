"""The network of docs/numerics.md, section 6, in a form that can be trained.

Weights and activations are rounded in the forward pass as the machine rounds them (weights to
trits times a bf16 scale, activations to int8 times a power of two); gradients pass the roundings
unchanged.
Products are exact and the residual stream is bf16 on a GPU, float32 on a CPU.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from host.train.scan import recurrence

__all__ = ["Network", "Shape", "Sites", "ternary"]

#: Largest magnitude of an embedding integer: three trits.
_LEVELS = 13
#: Scale of the embedding over its mean magnitude: +-13 is 2.9 standard deviations of a normal one.
_EMBEDDING_STEP = 0.28
_SMALLEST = 1e-20       # keeps the scalars of a zero vector finite; its codes are zero anyway


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocab: int
    width: int
    layers: int
    ffn: int

    @property
    def embedding_gain(self) -> float:
        """Power of two near ``sqrt(width)`` between the embedding's two scales, input over head."""
        return 2.0 ** round((self.width.bit_length() - 1) / 2)


class _Straight(torch.autograd.Function):
    """``rounded``, with the gradient of ``exact``."""

    @staticmethod
    def forward(ctx, exact, rounded):
        return rounded.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@torch.no_grad()
def ternary(weight, levels=1, step=1.0):
    """Integers and bf16 scale of each matrix of a stack: ``round(W / scale)`` within ``levels``.

    Parameters
    ----------
    weight : tensor, shape (..., rows, columns)
    levels : int
        Largest magnitude of an integer.
    step : float
        Scale over the mean magnitude.

    Returns
    -------
    integers : tensor, shape of ``weight``
    scale : tensor, shape (..., 1, 1)
    """
    scale = (step * weight.abs().mean((-1, -2), keepdim=True)).bfloat16().float()
    return (weight / scale).round().clamp(-levels, levels), scale


def _quantize(x):
    """Round ``x`` to int8 codes times the smallest power of two that fits."""
    largest = x.detach().abs().amax(-1, keepdim=True).float().clamp_min(_SMALLEST)
    # 127 * 2**k has the significand 1.984375: any larger one carries into the exponent.
    k = ((largest.view(torch.int32) + (0x800000 - 0x7E0001)) >> 23) - 127 - 6
    unit = ((k + 127) << 23).view(torch.float32)
    per_unit = ((127 - k) << 23).view(torch.float32)
    codes = (x.detach().float() * per_unit).round().clamp(-127, 127)
    return _Straight.apply(x, (codes * unit).to(x.dtype))


def _rms_inverse(x):
    return x.float().square().mean(-1, keepdim=True).clamp_min(_SMALLEST).rsqrt()


@dataclasses.dataclass(frozen=True)
class Sites:
    """How activations are treated.

    Attributes
    ----------
    quantize : bool
        Round activations to int8 codes, as the machine does.
    dropout : float
        Of the embedding and of both branches' outputs.
    """

    quantize: bool = True
    dropout: float = 0.0

    def codes(self, x):
        """Return what a ternary product reads."""
        return _quantize(x) if self.quantize else x

    def drop(self, x):
        """Drop elements, in training."""
        return F.dropout(x, self.dropout) if self.dropout else x


def mix_in(x, weight, bias, sites):
    """Compute update gate, candidate and output gate of the token mixer."""
    y = F.linear(sites.codes(x), weight) * _rms_inverse(x)
    forget, candidate, gate = y.chunk(3, -1)
    z = torch.sigmoid(-(forget + bias))
    return z.to(x.dtype), F.silu(candidate).to(x.dtype), F.silu(gate).to(x.dtype)


def mix_out_and_ffn(x, h, gate, output, ffn_in, ffn_down, sites):
    """Residual stream after the layer, and the codes and the L1 norm of the FFN's hidden vector."""
    mixed = F.linear(sites.codes(h * gate), output) * _rms_inverse(h)
    x = x + sites.drop(mixed.to(x.dtype))
    up, open_ = (F.linear(sites.codes(x), ffn_in) * _rms_inverse(x)).to(x.dtype).chunk(2, -1)
    y = up * F.relu(open_)
    codes = sites.codes(y)
    x = x + sites.drop(F.linear(codes, ffn_down))
    return x, codes, y.float().abs().sum(-1).mean()


def head(x, embedding, scale, sites):
    """Logits, float32."""
    return F.linear(sites.codes(x), embedding).float() * (_rms_inverse(x) * scale)


class Network(nn.Module):
    """Float master weights, one stack over the layers for each kind of matrix."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        depth, d, ffn = shape.layers, shape.width, shape.ffn

        def normal(*size, gain=1.0):
            return nn.Parameter(torch.randn(*size) * gain * size[-1] ** -0.5)

        branch = (2 * depth) ** -0.5
        self.embedding = normal(shape.vocab, d)
        self.mix_in = normal(depth, 3, d, d)                    # forget, candidate, gate
        self.mix_out = normal(depth, d, d, gain=branch)
        self.ffn_in = normal(depth, 2, ffn, d)                  # up, gate
        self.ffn_down = normal(depth, d, ffn, gain=branch)
        self.forget_bias = nn.Parameter(torch.linspace(0, 4, d).repeat(depth, 1))
        self.log_logit_gain = nn.Parameter(torch.zeros(()))

    def matrices(self) -> list[nn.Parameter]:
        """Parameters that weight decay acts on."""
        return [self.embedding, self.mix_in, self.mix_out, self.ffn_in, self.ffn_down]

    def embedding_integers(self):
        """Integers of the embedding, and its scale as a scalar tensor."""
        integers, scale = ternary(self.embedding, _LEVELS, _EMBEDDING_STEP)
        return integers, scale.view(())

    def rounded(self, dtype):
        """Weights as the forward pass uses them, cast to ``dtype``, which holds them exactly."""
        integers, scale = self.embedding_integers()
        weights = [_Straight.apply(self.embedding / scale, integers).to(dtype)]
        for weight in (self.mix_in, self.mix_out, self.ffn_in, self.ffn_down):
            trits, unit = ternary(weight)
            weights.append(_Straight.apply(weight, trits * unit).to(dtype))
        return weights, scale

    def forward(self, tokens, keep, states, sites, *, layer_functions=(mix_in, mix_out_and_ffn),
                dtype=torch.float32):
        """Run a chunk of ``length`` tokens.

        Parameters
        ----------
        tokens : int tensor, shape (batch, length)
        keep : tensor, shape (batch, length)
            0 where a document begins.
        states : tensor, shape (layers, batch, width)
        sites : Sites
        layer_functions : pair of callables
            :func:`mix_in` and :func:`mix_out_and_ffn`, or compiled versions of them.
        dtype : torch.dtype
            Of the residual stream.

        Returns
        -------
        x : tensor, shape (batch, length, width)
        embedding : tensor
            For :func:`head`, in ``dtype``.
        scale : scalar tensor
            ``s_head`` before the fitted logit constant.
        states : tensor
            After the chunk, detached.
        hidden : list of tensor
            Codes of each layer's FFN hidden vector.
        l1 : scalar tensor
            Mean over layers and tokens of the hidden vector's L1 norm.
        """
        first, second = layer_functions
        (embedding, mix_in_, mix_out, ffn_in, ffn_down), scale = self.rounded(dtype)
        x = F.embedding(tokens, embedding) * (scale * self.shape.embedding_gain)
        x = sites.drop(x.to(dtype))
        after, hidden, l1 = [], [], 0.0
        for index, weights in enumerate(zip(mix_in_.flatten(1, 2).unbind(0), mix_out.unbind(0),
                                            ffn_in.flatten(1, 2).unbind(0), ffn_down.unbind(0),
                                            strict=True)):
            z, c, gate = first(x, weights[0], self.forget_bias[index], sites)
            h = recurrence(z, c, keep, states[index])
            x, codes, norm = second(x, h, gate, *weights[1:], sites)
            after.append(h[:, -1].detach())
            hidden.append(codes)
            l1 = l1 + norm / self.shape.layers
        return (x, embedding, scale * self.log_logit_gain.exp(), torch.stack(after), hidden, l1)
