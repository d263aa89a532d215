"""Chat templates by family, each with a tokenizer that has its control tokens and a token a byte.

TRL ships most of them. Those of families that it has none of are written for these tests: short,
with the family's marks, roles and order as their makers document them, and none of their words.
"""

import re
from importlib.resources import files

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

TRL = {
    file.name.removesuffix(".jinja"): file.read_text("utf-8")
    for file in (files("trl") / "chat_templates").iterdir()
    if file.name.endswith(".jinja") and "training" not in file.name
}

MISTRAL = """\
{{- bos_token }}{% set said = messages %}
{%- if messages[0].role == 'system' %}{% set said = messages[1:] %}
{{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{% endif %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- set turn = namespace(of='user') %}
{%- for m in said %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if m.role != turn.of %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set turn.of = 'assistant' if m.role == 'user' else 'user' %}{% endif %}
{%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('an id has 9 characters') }}{% endif %}
{{- '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}
{%- elif m.tool_calls %}{% for c in m.tool_calls %}
{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{% endfor %}
{{- eos_token }}
{%- else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""

LLAMA4 = """\
{{- bos_token }}{% for m in messages %}
{{- '<|header_start|>' + ('ipython' if m.role == 'tool' else m.role) + '<|header_end|>\\n\\n' }}
{%- if m.role == 'system' and tools %}{{ tools | tojson + '{"name": ..., "parameters": ...}' }}
{%- endif %}
{%- if m.tool_calls %}{{ '<|python_start|><|python_end|>' }}{% for c in m.tool_calls %}
{{- '{"name": "' + c.function.name + '", "parameters": ' + c.function.arguments | tojson + '}' }}
{%- endfor %}{% else %}{{ m.content }}{% endif %}{{ '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"""

KIMI_K2 = """\
{%- if tools %}{{ '<|im_system|>tool_declare<|im_middle|>' + tools | tojson + '<|im_end|>' }}
{%- endif %}
{%- set heads = {'user': '<|im_user|>user', 'assistant': '<|im_assistant|>assistant'} %}
{%- for m in messages %}
{{- heads.get(m.role, '<|im_system|>' + (m.name or m.role)) + '<|im_middle|>' }}
{%- if m.role == 'tool' %}{{ '## Return of ' + m.tool_call_id + '\\n' }}{% endif %}{{ m.content }}
{%- if m.tool_calls %}{{ '<|tool_calls_section_begin|>' }}{% for c in m.tool_calls %}
{{- '<|tool_call_begin|>' + c.id + '<|tool_call_argument_begin|>' }}
{{- c.function.arguments | tojson + '<|tool_call_end|>' }}{% endfor %}
{{- '<|tool_calls_section_end|>' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"""

MINIMAX_M2 = """\
{%- set names = {'system': 'system', 'user': 'user', 'assistant': 'ai', 'tool': 'tool'} %}
{%- for m in messages %}{{ ']~b]' + names[m.role] + '\\n' }}
{%- if m.role == 'tool' %}{{ '<response>' + m.content + '</response>' }}
{%- else %}{{ m.content }}{% endif %}
{%- if loop.first and tools %}{{ '\\n' + tools | tojson }}{% endif %}
{%- if m.tool_calls %}{{ '<minimax:tool_call>\\n' }}{% for c in m.tool_calls %}
{{- '<invoke name="' + c.function.name + '">\\n' }}{% for k, v in c.function.arguments.items() %}
{{- '<parameter name="' + k + '">' + (v if v is string else v | tojson) + '</parameter>\\n' }}
{%- endfor %}{{ '</invoke>\\n' }}{% endfor %}{{ '</minimax:tool_call>' }}{% endif %}
{{- '[e~[\\n' }}{% endfor %}{% if add_generation_prompt %}{{ ']~b]ai\\n<think>\\n' }}{% endif %}"""

COMMAND_A = """\
{{- bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}
{%- if m.role == 'assistant' %}{{ '<|CHATBOT_TOKEN|>' }}
{%- if m.tool_calls %}{{ '<|START_ACTION|>[\\n' }}{% for c in m.tool_calls %}
{{- '    {"tool_call_id": "' ~ loop.index0 ~ '", "tool_name": "' ~ c.function.name }}
{{- '", "parameters": ' + c.function.arguments | tojson + '}' }}
{{- ',\\n' if not loop.last else '\\n' }}{% endfor %}{{ ']<|END_ACTION|>' }}
{%- else %}
{%- if m.thinking %}{{ '<|START_THINKING|>' + m.thinking + '<|END_THINKING|>' }}{% endif %}
{{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% endif %}
{%- elif m.role == 'tool' %}{{ '<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>' }}
{{- {'tool_call_id': '0', 'results': m.content} | tojson + '<|END_TOOL_RESULT|>' }}
{%- elif m.role == 'user' %}{{ '<|USER_TOKEN|>' + m.content }}
{%- else %}{{ '<|SYSTEM_TOKEN|>' + m.content }}
{%- if tools %}{{ '\\n' + tools | tojson }}{% endif %}{% endif %}
{{- '<|END_OF_TURN_TOKEN|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

COMMAND_R7B = COMMAND_A.replace(
    "<|CHATBOT_TOKEN|>' }}{% endif %}",
    "<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>' }}{% endif %}",
)
"""Its prompts say that nothing was thought, its turns do not."""

GRANITE3 = """\
{%- if tools %}{{ '<|start_of_role|>tools<|end_of_role|>' + tools | tojson + '<|end_of_text|>\\n' }}
{%- endif %}{% for m in messages %}
{{- '<|start_of_role|>' + ('tool_response' if m.role == 'tool' else m.role) + '<|end_of_role|>' }}
{%- if m.tool_calls %}{{ '<|tool_call|>[' }}{% for c in m.tool_calls %}
{{- {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}
{{- ', ' if not loop.last }}{% endfor %}{{ ']' }}{% else %}{{ m.content }}{% endif %}
{{- '<|end_of_text|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

DEEPSEEK_V31 = """\
{{- bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- elif m.role == 'system' %}{{ m.content }}
{%- else %}
{%- if messages[loop.index0 - 1].role == 'user' %}{{ '<｜Assistant｜></think>' }}{% endif %}
{{- m.content }}{% if m.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}
{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments }}
{{- '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}
{{- '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1].role == 'user' %}{{ '<｜Assistant｜></think>' }}
{%- endif %}"""

SMOLLM3 = """\
{%- for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\\n' }}
{{- m.content }}{% if loop.first and tools %}{{ tools | tojson + '\\n<tool_call>' }}{% endif %}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>\\n{"name": "' + c.function.name }}
{{- '", "arguments": ' + c.function.arguments | tojson + '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n</think>\\n' }}{% endif %}
{%- endif %}"""

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

HERMES3 = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools> ' }}{% for tool in tools %}
{{- '{"name": "' + tool.function.name + '", "parameters": ' }}
{{- tool.function.parameters | tojson + '}' }}{% endfor %}
{{- ' </tools><tool_call><|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>\\n{"name": "' + c.function.name }}
{{- '", "arguments": ' + c.function.arguments | tojson + '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LFM2_5 = (
    """\
{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
"""
    + CHATML
)

PHI4_MINI = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}
{%- if m.tools %}{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

OWN = {
    "mistral": MISTRAL,
    "llama4": LLAMA4,
    "kimi_k2": KIMI_K2,
    "minimax_m2": MINIMAX_M2,
    "command_a": COMMAND_A,
    "command_r7b": COMMAND_R7B,
    "granite3": GRANITE3,
    "deepseek_v31": DEEPSEEK_V31,
    "hermes3": HERMES3,
    "lfm2_5": LFM2_5,
    "smollm2": CHATML,
    "smollm3": SMOLLM3,
    "phi4_mini": PHI4_MINI,
}
TEMPLATES = TRL | OWN

EOS = {
    **dict.fromkeys(("gemma", "gemma3", "gemma4", "gemma4_v5"), "<eos>"),
    **dict.fromkeys(("glm4moe", "phi3", "phi3_5", "phi4_mini"), "<|endoftext|>"),
    **dict.fromkeys(("cohere", "cohere2", "command_a", "command_r7b"), "<|END_OF_TURN_TOKEN|>"),
    **dict.fromkeys(("deepseekv3", "deepseek_r1_distill", "deepseek_v31"), "<｜end▁of▁sentence｜>"),
    **dict.fromkeys(("llama3", "llama3_1", "llama3_2"), "<|eot_id|>"),
    "gptoss": "<|return|>",
    "granite3": "<|end_of_text|>",
    "llama4": "<|eot|>",
    "minimax_m2": "[e~[",
    "mistral": "</s>",
    "muse_glimmer": "<|eot|>",
}
"""The tokenizer's own end, if it is not <|im_end|>."""
MORE = {
    "lfm2_5": ("<|tool_call_start|>", "<|tool_call_end|>"),
    "phi4_mini": ("<|tool_call|>", "<|/tool_call|>", "<|system|>", "<|user|>", "<|tool|>"),
}
"""Control tokens that no template has."""
_CONTROL = re.compile(
    r"<\|\w+\|>|<｜[^｜<>]+｜>|<\|\w+>|<\w+\|>|<\|\"\|>|<(?:start|end)_of_\w+>|\[gMASK\]|<sop>"
    r"|\[/?[A-Z_]{3,}\]|\]~b\]|</?think>"
)


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A token a byte, and the family's control tokens."""
    template, eos = TEMPLATES[name], EOS.get(name, "<|im_end|>")
    alphabet = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    bytewise = Tokenizer(BPE(vocab=alphabet, merges=[]))
    bytewise.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = ByteLevelDecoder()
    controls = {*_CONTROL.findall(template), *MORE.get(name, ())} - {eos}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        additional_special_tokens=sorted(controls),
        bos_token="<bos>",
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast
