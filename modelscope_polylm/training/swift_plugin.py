"""PolyLM for ms-swift: `swift sft --model PACKAGE --external_plugins "$(polylm swift-plugin)" ...`.

ms-swift 4.6 knows one release under the type 'polylm', and with two faults: it sets the hidden size of GPT-2's
configuration to None, so that no weights load, and it writes Human/Assistant prompts. Here are a loader and templates
for packages of all releases (`polylm package`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from swift.model import Model, ModelGroup, ModelLoader, ModelMeta, register_model
from swift.template import Template, TemplateMeta, register_template

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.packaging.files import TOKENIZER_JSON
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.text.prompts import FORMATS, PromptFormat, known_format
from modelscope_polylm.text.tokenizer import FILE_NAME as TOKENIZER_MODEL

MODEL_TYPE = "polylm"
KEPT_FILES = [TOKENIZER_MODEL, "configuration.json", "ms_wrapper.py", "requirements.txt", "LICENSE"]
"""Of a package, which `swift export --merge_lora` copies into the merged one."""


class PolyLMLoader(ModelLoader):  # type: ignore[misc]
    """Loads a package; no code of the package is run."""

    default_trust_remote_code = False

    def get_config(self, model_dir: str) -> Any:
        """The configuration, with the hidden size noted."""
        config = super().get_config(model_dir)
        self._hidden_size = config.n_embd
        return config

    def get_processor(self, model_dir: str, config: Any) -> Any:
        """The tokenizer. Raises SnapshotError for a snapshot that transformers would read wrong."""
        if not (Path(model_dir) / TOKENIZER_JSON).is_file():
            raise SnapshotError(
                f"{model_dir} is no package, and transformers makes other ids of its tokenizer.model: write one with "
                f"`polylm package {model_dir} OUT`, and train OUT."
            )
        return super().get_processor(model_dir, config)

    def get_model(self, model_dir: str, config: Any, processor: Any, model_kwargs: Any) -> Any:
        """The network, with the hidden size that ms-swift has taken away."""
        config.n_embd = self._hidden_size
        return super().get_model(model_dir, config, processor, model_kwargs)


class PolyLMTemplate(Template):  # type: ignore[misc]
    """Prompts as the pipelines write them; the type 'polylm' takes the format that the package names."""

    def __init__(self, processor: Any, template_meta: Any, *others: Any, **options: Any) -> None:
        if template_meta.template_type == MODEL_TYPE:
            snapshot = open_snapshot(processor.model_info.model_dir, check_weights=False)
            template_meta = TEMPLATES[known_format(snapshot.prompt_format).name]
        self._format = FORMATS[template_meta.template_type.removeprefix(f"{MODEL_TYPE}-")]
        super().__init__(processor, template_meta, *others, **options)

    def _preprocess_inputs(self, inputs: Any) -> None:
        super()._preprocess_inputs(inputs)
        for message in inputs.messages if self._format.one_line_breaks else ():
            if message["role"] == "user" and isinstance(message["content"], str):
                message["content"] = re.sub("\n+", "\n", message["content"].strip())


def template_meta(format: PromptFormat) -> Any:
    """A format as ms-swift's template: the end token is a token, and an earlier answer ends as in the pipelines."""
    prompt = format.last_turn.replace("{question}", "{{QUERY}}")
    after_answer = None if format.earlier_turn is None else [format.earlier_turn.partition("{answer}")[2]]
    return TemplateMeta(
        f"{MODEL_TYPE}-{format.name}",
        prefix=[],
        prompt=[prompt],
        chat_sep=after_answer,
        suffix=[["eos_token_id"]],
        template_cls=PolyLMTemplate,
    )


TEMPLATES = {format.name: template_meta(format) for format in FORMATS.values()}
for each in TEMPLATES.values():
    register_template(each, exist_ok=True)
register_template(
    TemplateMeta(MODEL_TYPE, prefix=[], prompt=["{{QUERY}}"], chat_sep=None, template_cls=PolyLMTemplate), exist_ok=True
)
register_model(
    ModelMeta(
        MODEL_TYPE,
        [ModelGroup([Model(release.model_id, release.hf_id) for release in RELEASES.values()])],
        PolyLMLoader,
        template=MODEL_TYPE,
        architectures=["GPT2LMHeadModel"],
        additional_saved_files=KEPT_FILES,
    ),
    exist_ok=True,
)
