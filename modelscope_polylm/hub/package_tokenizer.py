"""Converts and proves the tokenizer of a package."""

from __future__ import annotations

import json
import logging

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.hub.journal import UnfinishedPackage
from modelscope_polylm.hub.package_files import TOKENIZER_JSON
from modelscope_polylm.hub.tokenizer_json import doubts, tokenizer_json
from modelscope_polylm.hub.tokenizer_proof import Proof, load_converted, prove
from modelscope_polylm.hub.tokenizer_settings import TokenizerSettings, read_settings
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

SHOWN = 3


def write_tokenizer(tokenizer: PolyLMTokenizer, package: UnfinishedPackage, strict: bool) -> Proof:
    """Write tokenizer.json after it was compared with SentencePiece on the built-in corpus.

    Differences by rounding never stop it, unless `strict`; see `Proof`.

    Raises:
        SnapshotError: the model cannot be converted; the two differ on natural text, or on any text where the model has
            no normalizer rules; or at all, if `strict`.
    """
    settings = read_settings(tokenizer)
    content = json.dumps(tokenizer_json(settings), ensure_ascii=False, separators=(",", ":"))
    proof = prove(tokenizer, load_converted(content))
    for line in doubts(settings):
        logger.info("tokenizer.json: %s.", line)
    _check(proof, settings, strict)
    package.write(TOKENIZER_JSON, content)
    return proof


def _check(proof: Proof, settings: TokenizerSettings, strict: bool) -> None:
    if strict:
        stopping = proof.differences
    elif settings.character_map:
        stopping = proof.natural()
    else:
        stopping = proof.faults()
    if stopping:
        shown = "\n".join(str(difference) for difference in stopping[:SHOWN])
        raise SnapshotError(
            f"tokenizer.json differs from SentencePiece on {len(stopping)} of {proof.total} strings, so nothing is "
            f"packaged:\n{shown}"
        )
    if proof.differences:
        logger.warning("tokenizer.json differs from SentencePiece on %d strings.", len(proof.differences))
