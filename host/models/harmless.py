"""What a model's file may hold that nobody reads: all else is an error that names it.

A key or a tensor that is neither read nor listed here could change what the model computes, so that
leaving it out would be a wrong answer without a word.
"""

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["is_harmless"]


def _any(value: object) -> bool:
    return True


def _off(value: object) -> bool:
    """Whether a value says that what its key is about is not there."""
    return value is None or value is False or value == 0 or value == [] or value == ""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Names that may go unread, and why.

    Attributes
    ----------
    kind : str
        ``key`` or ``tensor``.
    names : str
        Separated by spaces; ``*`` stands for any characters.
    reason : str
    allowed : callable
        Takes a key's value, and tells whether it is one that changes nothing.
    architecture : str
        In files of which architecture; ``*`` is any.
    """

    kind: str
    names: str
    reason: str
    allowed: Callable[[object], bool] = _any
    architecture: str = "*"


_ENTRIES = (
    # GGUF.
    _Entry("key", "general.*", "what the file says of itself: names, authors, licences, versions"),
    _Entry("key", "*.vocab_size", "the number of tokens, which the list of tokens has"),
    _Entry("key", "*.rope.scaling.finetuned", "how the weights were trained"),
    _Entry("key", "*.tensor_data_layout", "order of the rows of queries and keys: the "
                                          "architecture says it"),
    _Entry("key", "*.attention.causal", "attention looks back alone", lambda value: value is True),
    _Entry("key", "*.expert_count *.expert_used_count *.expert_shared_count "
                  "*.nextn_predict_layers *.leading_dense_block_count", "nothing of the kind",
           _off),
    _Entry("key", "quantize.*", "how the weights were quantized"),
    _Entry("key", "tokenizer.chat_template tokenizer.chat_template.* tokenizer.chat_templates",
           "how a dialogue becomes a prompt"),
    _Entry("key", "tokenizer.ggml.*_token_id tokenizer.ggml.eog_token_ids",
           "tokens for tasks other than the next token"),
    _Entry("key", "tokenizer.ggml.pre tokenizer.ggml.token_type tokenizer.ggml.scores "
                  "tokenizer.ggml.merges tokenizer.ggml.token_type_count "
                  "tokenizer.ggml.added_tokens tokenizer.huggingface.json tokenizer.rwkv.world",
           "what this kind of tokenizer does not look at"),
    _Entry("key", "tokenizer.ggml.add_eos_token tokenizer.ggml.add_sep_token "
                  "tokenizer.ggml.add_space_prefix tokenizer.ggml.add_bos_token",
           "what is put around a prompt: this kind of tokenizer has its own rules"),
    _Entry("key", "tokenizer.ggml.remove_extra_whitespaces "
                  "tokenizer.ggml.escape_whitespaces", "what SentencePiece was trained with", _off),
    # Configurations of checkpoints.
    _Entry("key", "_name_or_path transformers_version torch_dtype dtype auto_map "
                  "tokenizer_class model_max_length unsloth_* _commit_hash",
           "what the checkpoint says of itself"),
    _Entry("key", "use_cache output_attentions output_hidden_states return_dict "
                  "_attn_implementation attn_implementation _attn_implementation_autoset "
                  "chunk_size_feed_forward gradient_checkpointing attn_mode "
                  "fuse_cross_entropy fuse_norm fuse_swiglu pretraining_tp torchscript "
                  "use_bfloat16 tf_legacy_loss compression_ratio",
           "how a program computes what it computes"),
    _Entry("key", "initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop "
                  "hidden_dropout_prob attention_probs_dropout_prob router_aux_loss_coef",
           "what training alone does"),
    _Entry("key", "pad_token_id sep_token_id unk_token_id decoder_start_token_id "
                  "forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens",
           "tokens for tasks other than the next token"),
    _Entry("key", "id2label* label2id* num_labels problem_type task_specific_params* "
                  "finetuning_task prefix", "tasks other than the next token"),
    _Entry("key", "temperature top_k top_p typical_p repetition_penalty do_sample max_length "
                  "min_length num_beams num_beam_groups diversity_penalty early_stopping "
                  "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
                  "num_return_sequences output_scores return_dict_in_generate "
                  "remove_invalid_values exponential_decay_length_penalty",
           "how tokens are drawn, which the command line says"),
    _Entry("key", "is_encoder_decoder is_decoder add_cross_attention tie_encoder_decoder "
                  "cross_attention_hidden_size pruned_heads", "nothing of the kind",
           lambda value: _off(value) or value == {} or value is True),
    _Entry("key", "quantization_config.modules_to_not_convert quantization_config.rms_norm_eps "
                  "quantization_config.quantization_mode",
           "of packed matrices, whose types say as much"),
    _Entry("key", "conv_size share_conv_kernel elementwise_affine hidden_ratio",
           "of parts that the model has not", architecture="hgrn_bit"),
    _Entry("key", "max_position_embeddings rms_norm_eps", "a recurrence has no positions, and its "
           "norms add nothing (host.models.hgrn_bit)", architecture="hgrn_bit"),
    # Tensors.
    _Entry("tensor", "*.rotary_emb.inv_freq *.attn.rot_embd.inv_freq",
           "frequencies of the rotary embedding, which follow from the keys"),
)


def is_harmless(architecture: object, kind: str, name: str, value: Any = None) -> bool:
    """Whether what nobody has read changes nothing.

    Parameters
    ----------
    architecture : object
        Of the source.
    kind, name : str
        As ``unread`` of a source lists them.
    value : object
        Of a key.
    """
    return any(entry.kind == kind and entry.allowed(value)
               and entry.architecture in ("*", architecture)
               and any(fnmatchcase(name, pattern) for pattern in entry.names.split())
               for entry in _ENTRIES)
