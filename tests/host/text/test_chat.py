"""Chat templates in their sandbox, and dialogues as tokens."""

import importlib.util

import pytest
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers

from host.text.chat import ChatTemplate, Dialogue
from host.text.tokenizer import TextError, open_tokenizer
from host.text.vocabulary import TokenizerFile, begin
from tests.host.chat_examples import CHATML, dialogue, words

LLAMA = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
         "[INST] {{ message['content'] | trim }} [/INST]{% elif message['role'] == 'system' %}"
         "{{ raise_exception('System role not supported') }}{% else %}"
         " {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}")
NESTED = ("{%- for message in messages -%}\n    {%- if loop.index0 > 2 %}{% break %}{% endif %}\n"
          "    {{- message | tojson }}\n{% generation %}{{ message.content }}{% endgeneration %}\n"
          "{%- endfor %}{{ messages | tojson(indent=2) }}{{ tools is none }}"
          "{%- set found = namespace(x=1) %}{% set found.x = 'x' * 3 %}{{ found.x }}")
MESSAGES = ({"role": "user", "content": " Is 1 < 2? \u20ac"},
            {"role": "assistant", "content": "Yes & 'no'"}, {"role": "user", "content": "Why?\n"},
            {"role": "assistant", "content": ""})
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class TestTemplate:
    def test_blocks_leave_no_lines(self):
        assert ChatTemplate(CHATML, TOKENS).render(MESSAGES[:1]) == (
            "<|im_start|>user\n Is 1 < 2? \u20ac<|im_end|>\n\n<|im_start|>assistant\n")
        assert ChatTemplate(CHATML, TOKENS).render([], answer=False) == ""

    def test_json_is_not_for_html(self):
        source = "{{ messages[0] | tojson }}"
        assert ChatTemplate(source, TOKENS).render(MESSAGES) == (
            '{"role": "user", "content": " Is 1 < 2? \u20ac"}')

    @pytest.mark.parametrize(("source", "said"), [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[9].content }}", "list object has no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ 'x' * 2000000000 }}", "a product is too large"),
        ("{{ 9 ** 99 }}", "a product is too large"),
        ("{{ 9 ** 9 ** 9 }}", "a product is too large"),
        ("{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "it makes more than 16777216 characters"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
         "{% endfor %}", "it makes more than 16777216 characters"),
        ("{% for i in range(99999) %}{{ 'x' * 1000000 }}{% endfor %}",
         "it makes more than 16777216 characters"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion")])
    def test_refused(self, source, said):
        with pytest.raises(TextError, match=r"^The chat template of the model refuses the "
                                            r"dialogue: ") as caught:
            ChatTemplate(source, TOKENS).render(MESSAGES)
        assert said in str(caught.value)

    def test_no_template(self):
        with pytest.raises(TextError, match=r"^Chat template, line 2: .*endfor"):
            ChatTemplate("a\n{% endfor %}", TOKENS)
        with pytest.raises(TextError, match=r"^Chat template"):
            ChatTemplate("{{ " + "(" * 100_000, TOKENS)

    @pytest.mark.slow
    @pytest.mark.skipif(importlib.util.find_spec("transformers") is None,
                        reason="the judge is not here: pip install -e '.[judges]'")
    @pytest.mark.parametrize("source", [CHATML, LLAMA, NESTED])
    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    @pytest.mark.parametrize("answer", [False, True])
    def test_transformers(self, source, count, answer):
        from transformers.utils.chat_template_utils import render_jinja_template
        (expected,), _ = render_jinja_template(
            [list(MESSAGES[:count])], chat_template=source, add_generation_prompt=answer, **TOKENS)
        assert ChatTemplate(source, TOKENS).render(MESSAGES[:count], answer=answer) == expected


class TestDialogue:
    def test_special_tokens(self):
        talk, tokenizer = dialogue(system="the")
        tokens, dropped = talk.ask("hi")
        assert (tokens.count(259), tokens.count(260), dropped) == (3, 2, 0)
        assert tokenizer.decode(tokens) == "system\nthe\n\nuser\nhi\n\nassistant\n"

    def test_goes_on_with_the_tokens_of_the_answer(self):
        """An answer's tokens stay those that the model wrote."""
        talk, tokenizer = dialogue()
        first, _ = talk.ask("hi")
        the = tokenizer.vocabulary.tokens.index
        answer = [the("t"), the("h"), the("e")]
        assert tokenizer.encode("the") != answer
        talk.answer(answer, "the")
        second, _ = talk.ask("so")
        assert second[:len(first) + 3] == first + answer
        assert second[len(first) + 3] == 260
        assert tokenizer.decode(second) == ("user\nhi\n\nassistant\nthe\n\nuser\nso\n\n"
                                            "assistant\n")

    def test_white_space_around_an_answer(self):
        talk, tokenizer = dialogue()
        first, _ = talk.ask("hi")
        answer = tokenizer.encode(" the \n")
        talk.answer(answer, " the \n")
        second, _ = talk.ask("so")
        assert second[:len(first) + len(answer)] == first + answer

    def test_template_that_changes_what_was_said(self):
        """All tokens are those of the new text."""
        source = CHATML.replace("message['content']", "(message['content'] | upper)")
        talk, tokenizer = dialogue(template=source)
        talk.ask("hi")
        talk.answer(tokenizer.encode("the"), "the")
        assert tokenizer.decode(talk.ask("so")[0]) == (
            "user\nHI\n\nassistant\nTHE\n\nuser\nSO\n\nassistant\n")

    @pytest.mark.parametrize(("prompted", "counted"), [(True, 1), (False, 1)])
    def test_begins_once(self, prompted, counted):
        """A template that writes the begin itself does not double it."""
        talk, tokenizer = dialogue(template="{{ bos_token }}" + CHATML, first=261,
                                   prompted=prompted)
        assert begin(tokenizer.vocabulary, talk.ask("hi")[0]).count(261) == counted

    def test_oldest_messages_are_left_out(self):
        talk, tokenizer = dialogue(context=80, system="s")
        lengths = []
        for number in range(4):
            tokens, dropped = talk.ask(f"q{number}", reserve=8)
            lengths.append((len(tokens), dropped))
            assert len(tokens) + 7 <= 80
            talk.answer(tokenizer.encode("ok"), "ok")
        assert [dropped for _, dropped in lengths] == [0, 0, 2, 2]
        assert "q0" not in tokenizer.decode(talk.ask("q4", reserve=8)[0])
        assert tokenizer.decode(talk.ask("q5")[0]).startswith("system\ns\n")

    def test_message_that_does_not_fit(self):
        talk, _ = dialogue(context=40)
        with pytest.raises(TextError, match=r"^The message makes a prompt of \d+ tokens, but the "
                                            r"context has 40 for prompt and answer; shorten it"):
            talk.ask("x" * 40)
        assert talk.messages == []

    def test_refused_by_the_template(self):
        talk, _ = dialogue(template=LLAMA, system="s")
        with pytest.raises(TextError, match=r"System role not supported"):
            talk.ask("hi")
        assert talk.messages == []

    def test_withdrawn(self):
        talk, _ = dialogue()
        first, _ = talk.ask("hi")
        talk.withdraw()
        assert talk.ask("hi")[0] == first

    def test_no_template(self):
        with pytest.raises(TextError, match=r"^The model has no chat template"):
            dialogue(template=None)

    def test_tokenizer_in_a_file(self, tmp_path):
        plain = words()
        tokens = {token: index for index, token in enumerate(plain.tokens)}
        file = BPETokenizer(models.BPE(vocab=tokens, merges=[("t", "h"), ("th", "e")]))
        file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        file.decoder = decoders.ByteLevel()
        file.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        file.save(str(tmp_path / "tokenizer.json"))
        vocabulary = TokenizerFile(tmp_path / "tokenizer.json", 262, 261, 0, prompted=False,
                                   ends=(260,), template=CHATML)
        tokenizer = open_tokenizer(vocabulary)
        talk, other = Dialogue(vocabulary, tokenizer, 0), dialogue()[0]
        for said in ("hi", "so"):
            assert talk.ask(said) == other.ask(said)
            answer = tokenizer.encode("the")
            talk.answer(answer, "the")
            other.answer(answer, "the")
