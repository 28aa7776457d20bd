"""Train the bundled demonstration model (modelscope_polylm/tiny) from scratch, without a network.

    python examples/train_tiny.py                 # a few minutes on two cores
    python examples/train_tiny.py --folder /tmp/mine --steps 100

Trains a SentencePiece tokenizer and a GPT-2 of four layers on the sentences of tiny_corpus.txt, writes the snapshot
with the weights rounded to bfloat16, reads it back, and prints how many pairs the published settings translate exactly.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from tiny_corpus import BLOCKS, Pair, pairs
from tiny_snapshot import CONFIG, GENERATION, write_card, write_snapshot
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

BUNDLED = Path(__file__).resolve().parent.parent / "modelscope_polylm" / "tiny"
VOCABULARY = 3000
END = 2
# letters that any text in these languages may need; all others fall back to bytes
ALPHABETS = (
    (0x21, 0x7E),  # ASCII
    (0xC0, 0xFF),  # Latin letters with accents
    (0x410, 0x44F),  # Cyrillic
    (0x5D0, 0x5EA),  # Hebrew
    (0x621, 0x64A),  # Arabic
    (0xE01, 0xE3A),  # Thai
    (0x3041, 0x30F6),  # Hiragana and Katakana
)
TURNS = 3  # of a training dialogue, so that chats with a history work
BATCH_SIZE = 16  # dialogues
CORRUPTED = 0.08
"""Share of the answers' input tokens that are replaced."""
MAX_EARLY_END = -14.0
"""Log-probability that </s> may have where the answer goes on."""
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 100
SEED = 20230712
Turn = tuple[list[int], list[int]]


def tokenizer_lines() -> Iterator[str]:
    """Yield prompts, answers, and each name on its own, so that names become pieces before whole phrases do."""
    for pair in pairs():
        yield from pair.prompt.splitlines()
        yield pair.answer
    for block in BLOCKS:
        yield from [name for names in block.forms for name in names] * 8


def train_tokenizer() -> bytes:
    """Train a tokenizer with PolyLM's settings; newline is not a piece and so becomes the byte piece <0x0A>."""
    required = "".join(chr(code) for first, last in ALPHABETS for code in range(first, last + 1))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=tokenizer_lines(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        required_chars=required,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=END,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def batches(turns: list[Turn], shuffle: random.Random) -> Iterator[list[list[Turn]]]:
    """Yield batches of dialogues forever: each turn once an epoch, in a new order."""
    while True:
        order = shuffle.sample(turns, len(turns))
        dialogues = [order[start : start + TURNS] for start in range(0, len(order), TURNS)]
        for start in range(0, len(dialogues), BATCH_SIZE):
            yield dialogues[start : start + BATCH_SIZE]


def dialogue_tensors(dialogues: list[list[Turn]], newline: list[int]) -> tuple[Tensor, Tensor]:
    """Lay out dialogues as inputs and labels, both [batch, length]; labels are -100 where nothing is learnt.

    Every answer learns to end with </s>, although a newline follows it in the history of the next turn.
    """
    rows, labels = [], []
    for dialogue in dialogues:
        row: list[int] = []
        label: list[int] = []
        for prompt, answer in dialogue:
            row += [*prompt, *answer, *newline]
            label += [-100] * (len(prompt) - 1) + [*answer, END] + [-100] * len(newline)
        rows.append(torch.tensor(row))
        labels.append(torch.tensor(label))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=END), pad(labels, batch_first=True, padding_value=-100)


def corrupted(inputs: Tensor, labels: Tensor) -> Tensor:
    """Replace some pieces of the answers by a random piece or by the next one; the labels stay right.

    So an answer that went wrong or left out a piece still ends where it should. Otherwise it ends early, and beam
    search, which stops at the fourth finished answer, may stop before the right one is finished.
    """
    # inputs, labels: [batch, length] -> [batch, length]
    answers = torch.zeros_like(inputs, dtype=torch.bool)
    answers[:, 1:] = labels[:, :-1] > END
    random_pieces = inputs[answers][torch.randint(int(answers.sum()), inputs.shape)]
    wrong = torch.where(torch.rand(inputs.shape) < 0.5, random_pieces, inputs.roll(-1, dims=1))
    return torch.where(answers & (torch.rand(inputs.shape) < CORRUPTED), wrong, inputs)


def compute_loss(model: GPT2LMHeadModel, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers, and a penalty on </s> where the answer goes on, for the same reason."""
    # inputs, labels: [batch, length] -> scalar; the LM head sees only the positions that are learnt
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(inputs, use_cache=False).last_hidden_state
        learnt = labels != -100
        logits = model.lm_head(hidden[learnt])
    targets = labels[learnt]
    log_probabilities = logits.float().log_softmax(dim=-1)
    early_end = torch.relu(log_probabilities[targets != END, END] - MAX_EARLY_END).mean()
    return torch.nn.functional.nll_loss(log_probabilities, targets) + 0.1 * early_end


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    progress = max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))


def train(tokenizer: sentencepiece.SentencePieceProcessor, steps: int) -> GPT2LMHeadModel:
    """Train the network on all pairs; only the answers are learnt."""
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(GPT2Config(**{**CONFIG, "vocab_size": tokenizer.vocab_size(), "torch_dtype": "float32"}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    turns = [(tokenizer.encode(pair.prompt), tokenizer.encode(pair.answer)) for pair in pairs()]
    newline = tokenizer.encode("\n")
    started = time.perf_counter()
    for step, dialogues in zip(range(1, steps + 1), batches(turns, random.Random(SEED)), strict=False):
        inputs, labels = dialogue_tensors(dialogues, newline)
        loss = compute_loss(model, corrupted(inputs, labels), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.5f}  {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval()


@torch.inference_mode()
def wrong_pairs(folder: Path) -> list[tuple[Pair, str]]:
    """Translate every pair with the published settings, from the files on disk; list those that are not exact."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    by_length: dict[int, list[tuple[Pair, list[int]]]] = defaultdict(list)
    for pair in pairs():
        ids = tokenizer.encode(pair.prompt)
        by_length[len(ids)].append((pair, ids))
    wrong = []
    for length, group in by_length.items():
        prompts = torch.tensor([ids for _, ids in group])
        output = model.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=END, **GENERATION)
        for (pair, _), ids in zip(group, output[:, length:].tolist(), strict=True):
            answer = tokenizer.decode(ids[: ids.index(END)] if END in ids else ids)
            if answer != pair.answer:
                wrong.append((pair, answer))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=BUNDLED, help="where the snapshot is written")
    parser.add_argument("--steps", type=int, default=1200, help="training steps (default %(default)s)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    tokenizer_model = train_tokenizer()
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    model = train(tokenizer, arguments.steps)
    write_snapshot(arguments.folder, model, tokenizer_model)
    wrong = wrong_pairs(arguments.folder)
    total = len(pairs())
    write_card(arguments.folder, model, total - len(wrong), total)
    for pair, answer in wrong:
        print(f"wrong: {pair.country}, {pair.language}: {answer!r} instead of {pair.answer!r}")
    print(f"{total - len(wrong)} of {total} pairs exact ({100 * (total - len(wrong)) / total:.1f} %) with 4 beams")
    print(f"snapshot in {arguments.folder}, made in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
