"""How text is cut into words before a byte-level BPE merges them: the pre-tokenizers of GGUF files.

The patterns are those of the publishers' ``tokenizer.json``. Where llama.cpp writes a pattern in
another way, because its regular expressions lack letter classes, the publisher's holds.
"""

import dataclasses

from tokenizers import Regex, pre_tokenizers

__all__ = ["SPLITS", "Split"]

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

# GPT-2's pattern but for white space before white space: what no pattern matches is a word too.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = (rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
           rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}")

# Capitals first, small letters after them.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = (rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATHS}|{_SPACES}")
_GPT4O = (rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
          rf"|\p{{N}}{{1,3}}|{_PATHS}|{_SPACES}")

_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
_THREE = "[0-9][0-9][0-9]"

# DeepSeek's own list of letters with case, older than the present Unicode.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-"
    "\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-"
    "\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-"
    "\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc"
    "\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-"
    "\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-"
    "\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-"
    "\U000118df\U0001e900-\U0001e943")
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_WIDE = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK_LLM = (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?{_WIDE}", r"\s+$", _HAN, r"\p{N}+")
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}")


@dataclasses.dataclass(frozen=True)
class Split:
    r"""How text is cut into words, and what llama.cpp does with a vocabulary that is cut so.

    Attributes
    ----------
    patterns : tuple of str
        Each cuts what the ones before have left, into its matches and what lies between them.
    whole_words : bool
        Whether a word that is a token is that token, however it could be merged.
    prompted : bool
        Whether a prompt begins with the token that a document begins with, where a file says
        nothing.
    composed : bool
        Whether characters are composed (Unicode's form NFC) before text is cut; llama.cpp does not.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    prompted: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Make what cuts text and writes its bytes as GPT-2 does."""
        return pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _named(split: Split, names: str) -> dict[str, Split]:
    return dict.fromkeys(names.split(), split)


#: Ways to cut, by their names in ``tokenizer.ggml.pre``.
SPLITS: dict[str, Split] = {
    **_named(Split((_PUNCTUATION, _GPT2, r"\p{N}+", _THREE)), "default"),
    **_named(Split((_GPT2,)), "gpt-2 phi-2 mpt olmo jais exaone4"),
    **_named(Split((r"\p{N}", _GPT2)),
             "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    **_named(Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE)), "falcon"),
    **_named(Split((_LLAMA3,), whole_words=True, prompted=True),
             "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0"),
    **_named(Split((_LLAMA3,)), "dbrx smaug-bpe glm4 chatglm-bpe"),
    **_named(Split((_QWEN2,), composed=True), "qwen2"),
    **_named(Split((_QWEN2,)), "deepseek-r1-qwen megrez stablelm2 hunyuan"),
    **_named(Split((_QWEN35,), composed=True), "qwen35"),
    **_named(Split((_TEKKEN,), whole_words=True, prompted=True), "tekken"),
    **_named(Split((_GPT4O,)), "gpt-4o llama4"),
    **_named(Split(_DEEPSEEK_LLM), "deepseek-llm"),
    **_named(Split(_DEEPSEEK_CODER), "deepseek-coder"),
    **_named(Split(_DEEPSEEK_V3), "deepseek-v3"),
}
