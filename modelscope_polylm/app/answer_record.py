"""A reply as the JSON object that `--json` and `polylm batch` write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_polylm.generator import Reply


def answer_record(reply: Reply) -> dict[str, Any]:
    """The best answer's 'text', number of 'tokens' and 'finish_reason'; of several answers all 'texts' and 'scores'."""
    best = reply.answers[0]
    record = {"text": reply.texts[0], "tokens": len(best.ids), "finish_reason": best.finish_reason}
    if len(reply.texts) > 1:
        record |= {"texts": reply.texts, "scores": [answer.score for answer in reply.answers]}
    return record
