r"""The embedded pair's tokenizer: byte-level BPE over units that suit tool calls.

Two choices make copying, the heart of tool use, learnable by a model of under a million parameters:
numbers are split into groups of two digits, and a name tokenises alike in prose ("Ada Moreau" in
quotes) and in JSON. Any other text falls back to bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOT, EOT = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKERS = ("<tool_call>", "</tool_call>")

UNITS = Regex(
    r"\d{1,2}"  # two-digit groups
    r"| ?[A-Za-z_]+"  # words, a leading space belongs to them
    r"|(?:[^\sA-Za-z\d_]| (?=[^\sA-Za-z\d_]))+(?: (?=\d)|(?<=:) )?"  # punctuation: `": {"`, `: `
    r"|\s"
)

CHAT_TEMPLATE = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content }}
{%- if loop.first and tools %}
{{- '\\n# Tools' }}
{%- for t in tools %}{{- '\\n' + (t | tojson) }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def train_tokenizer(corpus: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train on text; units that occur become whole tokens until the vocabulary is full."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(UNITS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True, normalized=False) for t in (PAD, BOT, EOT)]
    markers = [AddedToken(t, special=False, normalized=False) for t in MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=[*specials, *markers],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOT, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
