"""Whether a snapshot is in today's form, which vLLM reads right."""

from __future__ import annotations

import json

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.snapshot import Snapshot


def form_problems(snapshot: Snapshot) -> list[str]:
    """What vLLM would read wrong or not at all in a snapshot, a line each; none in what `polylm package` writes."""
    folder = snapshot.folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    problems = []
    if not list(folder.glob("*.safetensors")):
        problems.append("its weights are not safetensors")
    if config.get("architectures") != ["GPT2LMHeadModel"]:
        problems.append(f"config.json names the class {config.get('architectures')}, not GPT2LMHeadModel")
    if config.get("eos_token_id") != snapshot.tokenizer.eos_token_id:
        problems.append(f"config.json names the end token {config.get('eos_token_id')}, which is not </s>")
    for name in ("tokenizer.json", "generation_config.json"):
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
    return problems


def check_form(snapshot: Snapshot) -> None:
    """Raise SnapshotError where the snapshot has to be packaged first."""
    if problems := form_problems(snapshot):
        raise SnapshotError(
            f"vLLM cannot take {snapshot.folder} as it is: {'; '.join(problems)}. Package it first: "
            f"`polylm package {snapshot.folder} OUT`, then load OUT."
        )
