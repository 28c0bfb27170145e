"""A vocabulary with which dialogues are held in tests."""

import dataclasses

from host.models.examples import tiny_vocabulary
from host.text.chat import Dialogue
from host.text.tokenizer import Tokenizer

CHATML = ("{% for message in messages %}\n"
          "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
          "{% endfor %}\n"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>")


def words(**options):
    """Make a vocabulary with special tokens and a template."""
    plain = tiny_vocabulary()
    return dataclasses.replace(plain, tokens=(*plain.tokens, *SPECIAL), controls=(259, 260, 261),
                               **({"ends": (260,), "prompted": False, "template": CHATML}
                                  | options))


def dialogue(context=0, system=None, **options):
    """Begin a dialogue, and return it with its tokenizer."""
    vocabulary = words(**options)
    tokenizer = Tokenizer(vocabulary)
    return Dialogue(vocabulary, tokenizer, context, system), tokenizer
