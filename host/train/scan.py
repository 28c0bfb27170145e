"""The recurrence ``h_t = h_{t-1} + z_t (c_t - h_{t-1})`` over whole sequences, with its gradient.

``keep_t`` is 0 where a document begins: the state before it counts as zero there.

    f_t = keep_t (1 - z_t)        h_t = f_t h_{t-1} + z_t c_t
    G_t = dh_t + f_{t+1} G_{t+1}  dz_t = G_t (c_t - keep_t h_{t-1})      dc_t = G_t z_t

``G`` is the recurrence again, backwards in time. No gradient leaves a chunk through its initial
state.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:         # CPU builds of PyTorch come without it
    triton = None

__all__ = ["recurrence"]

_CHANNELS = 16      # of one program: 32 bytes of bf16, the sector size of global memory


if triton is not None:
    @triton.jit
    def _compose(f1, v1, f2, v2):
        """Compose two steps ``h -> f h + v``, the second after the first."""
        return f1 * f2, f2 * v1 + v2

    @triton.jit
    def _forward_kernel(z_ptr, c_ptr, keep_ptr, initial_ptr, h_ptr, width,
                        LENGTH: tl.constexpr, CHANNELS: tl.constexpr):
        batch, block = tl.program_id(0), tl.program_id(1)
        time = tl.arange(0, LENGTH)
        channel = block * CHANNELS + tl.arange(0, CHANNELS)
        at = (batch * LENGTH + time[:, None]) * width + channel[None, :]
        z = tl.load(z_ptr + at).to(tl.float32)
        c = tl.load(c_ptr + at).to(tl.float32)
        keep = tl.load(keep_ptr + batch * LENGTH + time).to(tl.float32)
        initial = tl.load(initial_ptr + batch * width + channel).to(tl.float32)
        f = (1 - z) * keep[:, None]
        v = z * c + tl.where(time[:, None] == 0, f * initial[None, :], 0.0)
        _, h = tl.associative_scan((f, v), 0, _compose)
        tl.store(h_ptr + at, h.to(h_ptr.dtype.element_ty))

    @triton.jit
    def _backward_kernel(z_ptr, c_ptr, keep_ptr, initial_ptr, h_ptr, dh_ptr, dz_ptr, dc_ptr, width,
                         LENGTH: tl.constexpr, CHANNELS: tl.constexpr):
        batch, block = tl.program_id(0), tl.program_id(1)
        time = tl.arange(0, LENGTH)
        channel = block * CHANNELS + tl.arange(0, CHANNELS)
        at = (batch * LENGTH + time[:, None]) * width + channel[None, :]
        later = time < LENGTH - 1
        z_next = tl.load(z_ptr + at + width, mask=later[:, None], other=1.0).to(tl.float32)
        keep_next = tl.load(keep_ptr + batch * LENGTH + time + 1, mask=later,
                            other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + at).to(tl.float32)
        _, g = tl.associative_scan(((1 - z_next) * keep_next[:, None], dh), 0, _compose,
                                   reverse=True)
        z = tl.load(z_ptr + at).to(tl.float32)
        c = tl.load(c_ptr + at).to(tl.float32)
        keep = tl.load(keep_ptr + batch * LENGTH + time).to(tl.float32)
        initial = tl.load(initial_ptr + batch * width + channel).to(tl.float32)
        first = time[:, None] == 0
        before = tl.load(h_ptr + at - width, mask=time[:, None] > 0, other=0.0).to(tl.float32)
        before += tl.where(first, initial[None, :], 0.0)
        tl.store(dz_ptr + at, (g * (c - keep[:, None] * before)).to(dz_ptr.dtype.element_ty))
        tl.store(dc_ptr + at, (g * z).to(dc_ptr.dtype.element_ty))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, c, keep, initial):
        z, c = z.contiguous(), c.contiguous()
        batch, length, width = z.shape
        h = torch.empty_like(z)
        _forward_kernel[batch, width // _CHANNELS](z, c, keep, initial, h, width,
                                                   LENGTH=length, CHANNELS=_CHANNELS)
        ctx.save_for_backward(z, c, keep, initial, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        z, c, keep, initial, h = ctx.saved_tensors
        batch, length, width = z.shape
        dz, dc = torch.empty_like(z), torch.empty_like(c)
        _backward_kernel[batch, width // _CHANNELS](z, c, keep, initial, h, dh.contiguous(), dz, dc,
                                                    width, LENGTH=length, CHANNELS=_CHANNELS)
        return dz, dc, None, None


def _recurrence_by_doubling(z, c, keep, initial):
    """Compose neighbours 1, 2, 4, ... steps apart: log2(length) passes of plain PyTorch."""
    f = (1 - z) * keep[..., None]
    v = z * c
    v = torch.cat([v[:, :1] + f[:, :1] * initial[:, None], v[:, 1:]], dim=1)
    step = 1
    while step < z.shape[1]:
        v = torch.cat([v[:, :step], f[:, step:] * v[:, :-step] + v[:, step:]], dim=1)
        f = torch.cat([f[:, :step], f[:, step:] * f[:, :-step]], dim=1)
        step *= 2
    return v


def recurrence(z, c, keep, initial):
    """States after each step.

    Parameters
    ----------
    z, c : tensor, shape (batch, length, width)
        ``length`` is a power of two and ``width`` a multiple of 16 on a GPU.
    keep : tensor of 0 or 1, shape (batch, length)
    initial : tensor, shape (batch, width)
    """
    if z.is_cuda:
        return _Recurrence.apply(z, c, keep, initial)
    return _recurrence_by_doubling(z, c, keep, initial)
