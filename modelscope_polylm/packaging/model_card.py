"""The README.md of a hub package: front matter for hubs, and a page for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscope_polylm.errors import DISTRIBUTION
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.text.prompts import known_format

if TYPE_CHECKING:
    from modelscope_polylm.packaging.package import PackageReport
    from modelscope_polylm.packaging.quantized_source import Quantization

PAPER = "https://arxiv.org/abs/2307.06018"
QUESTION = "Beijing is the capital of China.\\nTranslate this sentence from English to Chinese."


def model_card(snapshot: Snapshot, report: PackageReport, dtype: str, quantization: Quantization | None = None) -> str:
    """The text of README.md.

    Args:
        snapshot: the opened source.
        report: of the run, so far.
        dtype: torch's name of the packaged weights' type.
        quantization: of the projections.
    """
    return "\n".join(
        [
            _front_matter(snapshot),
            f"# {_title(snapshot)}",
            "",
            _summary(snapshot, dtype, quantization),
            _usage(snapshot, quantization),
            _prompt(snapshot),
            _tokenizer(report),
            _warnings(report),
            "## Licence\n\nApache License 2.0, as the original release; see `LICENSE`.\n",
        ]
    )


def _front_matter(snapshot: Snapshot) -> str:
    lines = [
        "---",
        "license: apache-2.0",
        f"language: [{', '.join(LANGUAGES)}]",
        "tasks:\n- text-generation",
        "pipeline_tag: text-generation",
        "domain:\n- nlp",
        "frameworks:\n- pytorch",
        "library_name: transformers",
        "tags:\n- polylm\n- gpt2\n- multilingual\n- text-generation",
    ]
    if snapshot.release and snapshot.release.hf_id:
        lines.append(f"base_model: {snapshot.release.hf_id}")
    return "\n".join([*lines, "---", ""])


def _title(snapshot: Snapshot) -> str:
    return f"PolyLM {snapshot.release.name}" if snapshot.release else f"PolyLM ({snapshot.folder.name})"


def _summary(snapshot: Snapshot, dtype: str, quantization: Quantization | None) -> str:
    projections = f", those of projections in {quantization.name} (GPTQ, groups of 128)" if quantization else ""
    config, release = snapshot.config, snapshot.release
    origin = f"the release `{release.model_id}`" if release else "a PolyLM snapshot"
    return f"""A language model for 18 languages ([paper]({PAPER})), packaged from {origin} for current engines.

| | |
|---|---|
| parameters | {config.parameters:,} in {dtype}{projections} |
| network | GPT-2: {config.layers} layers, {config.heads} heads, hidden size {config.hidden_size} |
| context | {config.max_positions} tokens |
| vocabulary | {config.vocab_size:,} pieces |

The package changes this: the weights are safetensors, without causal masks and without a second copy of the embedding;
the end token is `</s>` ({snapshot.tokenizer.eos_token_id}) everywhere; a tokenizer.json gives SentencePiece's ids; and
there is a chat template.
"""


def _usage(snapshot: Snapshot, quantization: Quantization | None) -> str:
    needs = ", which needs gptqmodel and optimum for GPTQ" if quantization else ""
    beams = snapshot.generation.get("num_beams", 1)
    search = f" They use beam search with {beams} beams." if beams > 1 else ""
    return f"""## Use

`MODEL` is the id of this repository or a folder with its files.

With ModelScope and the plugin that made this package, {DISTRIBUTION} (`pip install .` in a clone of its repository):

```python
import modelscope_polylm
from modelscope.pipelines import pipeline

messages = [{{"role": "user", "content": "{QUESTION}"}}]
pipe = pipeline("text-generation", model=MODEL, trust_remote_code=True)
print(pipe({{"messages": messages}})["text"])
```

With transformers alone{needs}:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype="auto")
messages = [{{"role": "user", "content": "{QUESTION}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Use bfloat16 or float32: in float16 PolyLM's activations overflow.
`generation_config.json` has the settings of the published examples.{search}
"""


def _prompt(snapshot: Snapshot) -> str:
    text = known_format(snapshot.prompt_format).last_turn.replace("{question}", "QUESTION")
    return f"""## Prompt

There are no chat tokens. A question is ordinary text, where ⏎ is a line break:

    {text.replace(chr(10), "⏎")}

PolyLM was not trained with a system role.
"""


def _tokenizer(report: PackageReport) -> str:
    faults = [f"- {difference}\n" for difference in report.parity.faults[:10]]
    return f"""## Tokenizer

{report.parity}
The strings are text in the 18 languages, code, whitespace, emoji, combining marks, rare characters, texts that look
like control tokens, and random Unicode.
{"".join(faults)}
No token is added to a text. Text that spells `</s>` stays text, because `tokenizer_config.json` sets
`split_special_tokens`, which transformers obeys from version 4.43 on; with
`AutoTokenizer.from_pretrained(MODEL, split_special_tokens=False)` it becomes the end token. The `tokenizers` library
alone reads it as the end token unless you set `tokenizer.encode_special_tokens = True`.

Bytes that are not valid UTF-8, as at the end of an answer that was cut off, are decoded to replacement characters,
sometimes to another number of them than with SentencePiece.
"""


def _warnings(report: PackageReport) -> str:
    if not report.warnings:
        return ""
    return "## To know\n\n" + "".join(f"- {warning}\n" for warning in report.warnings)
