"""A trained network as a model file holds it."""

import numpy as np
import torch

from host.files.tensors import TernaryMatrix, to_bf16
from host.models.mmfreelm import Layer, TernaryLM
from host.text.vocabulary import Vocabulary
from host.train.network import Network, ternary

__all__ = ["to_model"]


@torch.no_grad()
def to_model(network: Network, vocabulary: Vocabulary, constants: dict[str, float], name: str,
             metadata: dict[str, str | tuple[str, ...]]) -> TernaryLM:
    """Round a network's weights to a model.

    Parameters
    ----------
    network : Network
    vocabulary : Vocabulary
    constants : dict
        Fitted logit constant of each arithmetic.
    name : str
    metadata : dict
        For :class:`host.models.mmfreelm.TernaryLM`.
    """
    def rounded(weight):
        trits, scales = ternary(weight)
        return trits.to(torch.int8).cpu().numpy(), scales[..., 0, 0].tolist()

    mix_in, mix_in_scales = rounded(network.mix_in)
    mix_out, mix_out_scales = rounded(network.mix_out)
    ffn_in, ffn_in_scales = rounded(network.ffn_in)
    ffn_down, ffn_down_scales = rounded(network.ffn_down)
    biases = network.forget_bias.bfloat16().float().cpu().numpy()
    layers = []
    for index in range(network.shape.layers):
        forget, candidate, gate = map(TernaryMatrix, mix_in[index], mix_in_scales[index])
        up, ffn_gate = map(TernaryMatrix, ffn_in[index], ffn_in_scales[index])
        layers.append(Layer(
            forget=forget, candidate=candidate, gate=gate,
            output=TernaryMatrix(mix_out[index], mix_out_scales[index]),
            ffn_gate=ffn_gate, ffn_up=up,
            ffn_down=TernaryMatrix(ffn_down[index], ffn_down_scales[index]),
            forget_bias=biases[index]))
    integers, scale = network.embedding_integers()
    head_scale = float(scale * network.log_logit_gain.exp())
    return TernaryLM(
        name=name, embedding=integers.cpu().numpy().astype(np.int8),
        embedding_scale=to_bf16(float(scale) * network.shape.embedding_gain), layers=tuple(layers),
        logit_scales={arithmetic: to_bf16(head_scale * constant)
                      for arithmetic, constant in constants.items()},
        vocabulary=vocabulary, metadata=metadata)
