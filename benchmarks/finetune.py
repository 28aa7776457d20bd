"""`python -m benchmarks.finetune --shape 13b`: fine-tuning by this package next to plain peft and Trainer.

Random weights, rows of 2,048 random tokens that are all learnt, the same for both, each engine in a process of its own.
"plain" is what one writes without this package: GPT2LMHeadModel, `get_peft_model` and transformers' Trainer with
`bf16=True` and gradient checkpointing, which --no-checkpointing switches off. "packed" is this package on rows of
several examples, half of whose tokens are learnt. Prints tokens/s, the most memory and the first loss, and writes them
to $OUT/finetune.json where OUT is set. "swift" is `swift sft` with this package's plugin on files of random weights
in --folder, with ms-swift's defaults: it wants ms-swift installed, as tests/interop/environments.py does.

    python -m benchmarks.finetune --shape 13b --rows 1 4 8
    python -m benchmarks.finetune --shape 1.7b --method full --rows 1 8
    python -m benchmarks.finetune --shape 13b --rows 8 --engines polylm --residual weights --profile
    python -m benchmarks.finetune --shape 13b --rows 1 --engines polylm --quantization int4 --memory 24
    python -m benchmarks.finetune --shape 13b --rows 1 --engines swift --folder /dev/shm/package
    python -m benchmarks.finetune --shape small --rows 2 --steps 3        # tries the benchmark itself, on a CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.fresh_process import in_fresh_process
from benchmarks.snapshot_files import write_snapshot
from modelscope_polylm.backends.placement import choose_device, free_bytes
from modelscope_polylm.cli.bench.workloads import SHAPES, RandomWeights, random_snapshot, shape_config
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from modelscope_polylm.training.collate import IGNORED
from modelscope_polylm.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
LENGTH = 2048
PACKED = (700, 500, 400, 248, 200)
"""Tokens of the examples of a packed row."""
ENGINES = ("polylm", "packed", "plain")
SWIFT = "swift"
SWIFT_STEPS = (8, 24)
"""Between these steps ms-swift's speed is taken, which it tells to a second."""
WARM_UP = 2
"""Steps that are not counted."""
PROFILED = 2
LONGEST_PROFILE = 25


def main() -> None:
    """Parse the arguments and run every engine with every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="of a batch, each 2,048 tokens")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--engines", nargs="+", choices=(*ENGINES, SWIFT), default=list(ENGINES))
    parser.add_argument("--residual", choices=("float32", "weights"), default="float32")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="of the frozen weights; leave out plain")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="of all blocks, or of none")
    parser.add_argument("--memory", type=float, help="GB that this package may take of the GPU, as on a smaller card")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes")
    parser.add_argument("--folder", type=Path, help="where the files are that ms-swift reads; made if missing")
    arguments = parser.parse_args()
    results = []
    for rows in arguments.rows:
        for engine in arguments.engines:
            run = swift_result if engine == SWIFT else measure
            for result in in_fresh_process(run, engine, rows, vars(arguments)):
                results.append(result)
                print(json.dumps(result), flush=True)
                if folder := os.environ.get("OUT"):
                    Path(folder, "finetune.json").write_text(json.dumps(results, indent=1))


def measure(engine: str, rows: int, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one result: tokens/s, memory, losses, or that there was no room."""
    device = choose_device(None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    options = TrainingOptions.from_dict(
        {
            "method": arguments["method"],
            "device_rows": rows,
            "batch_tokens": rows * LENGTH,
            "length": LENGTH,
            "checkpointing": arguments["checkpointing"],
            "residual": arguments["residual"],
            "quantization": arguments["quantization"],
            "log_every": 1,
            "save_every": 10**6,
        }
    ).for_model(SHAPES[arguments["shape"]]["n_embd"], LENGTH)
    facts = {"engine": engine, "shape": arguments["shape"], "method": options.method, "rows": rows, "device": card}
    facts |= {"quantization": options.quantization}
    data = Rows(engine == "packed", SHAPES[arguments["shape"]]["vocab_size"], rows * arguments["steps"])
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments["shape"], options, device, dtype, arguments["steps"], data, Path(folder))
        trainer = plain_trainer(*given) if engine == "plain" else own_trainer(*given, arguments["memory"])
        try:
            yield {**facts, **timed(trainer, rows, device, arguments["profile"])}
        except torch.OutOfMemoryError:
            yield {**facts, "result": "out of memory"}


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of random tokens, the same for every engine."""

    def __init__(self, packed: bool, vocabulary: int, count: int) -> None:
        self._packed, self._vocabulary, self._count = packed, vocabulary, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """'input_ids', 'shift_labels', 'position_ids', each [LENGTH], and the row's number as its 'records'."""
        draw = torch.Generator().manual_seed(index)
        ids = torch.randint(4, self._vocabulary, (LENGTH,), generator=draw)
        targets = torch.cat([ids[1:], torch.tensor([IGNORED])])
        lengths = PACKED if self._packed else (LENGTH,)
        positions = torch.cat([torch.arange(length) for length in lengths])
        if self._packed:
            # the first half of an example is a question, and none predicts the next one's first token
            halves = torch.cat([torch.arange(length) < length // 2 for length in lengths])
            targets = targets.masked_fill(halves | positions.roll(-1).eq(0), IGNORED)
        return {"input_ids": ids, "shift_labels": targets, "position_ids": positions, "records": [index]}


def swift_result(engine: str, rows: int, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what `swift sft` tells of a LoRA run over rows of 2,048 tokens."""
    folder = arguments["folder"]
    if folder is None:
        raise SystemExit("Name a folder for the files that ms-swift reads: --folder")
    write_package(folder, arguments["shape"])
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as out:
        data = Path(out, "data.jsonl")
        data.write_text("".join(f"{json.dumps(long_conversation(number))}\n" for number in range(256)))
        options = {
            "model": folder,
            "dataset": data,
            "external_plugins": ROOT / "modelscope_polylm" / "training" / "swift_plugin.py",
            "output_dir": Path(out, "run"),
            "tuner_type": "lora",
            "lora_rank": 8,
            "lora_alpha": 16,
            "torch_dtype": "bfloat16" if on_gpu else "float32",
            "max_length": LENGTH,
            "truncation_strategy": "right",
            "max_steps": SWIFT_STEPS[1],
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 1,
            "logging_steps": SWIFT_STEPS[0],
            "save_strategy": "no",
            "split_dataset_ratio": 0,
            "dataset_num_proc": 1,
            "report_to": "none",
            "add_version": "false",
        }
        named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "swift.cli.sft", *named, "--target_modules", "c_attn", "c_proj", "c_fc"]
        subprocess.run(command, check=True)
        logged = [json.loads(line) for line in Path(out, "run", "logging.jsonl").read_text().splitlines()]
    yield {
        "engine": engine,
        "shape": arguments["shape"],
        "method": "lora",
        "rows": rows,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        **swift_speed(logged, rows),
    }


def swift_speed(logged: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Tokens/s between two steps, from the mean times of a step until each of them, and the most memory."""
    times = {}
    for entry in logged:
        if "train_speed(s/it)" in entry and "loss" in entry:
            step = int(entry["global_step/max_steps"].split("/")[0])
            times[step] = step * entry["train_speed(s/it)"]
    first, last = SWIFT_STEPS
    memory = max(entry.get("memory(GiB)", 0.0) for entry in logged)
    speed = rows * LENGTH * (last - first) / (times[last] - times[first])
    return {"tokens_per_second": round(speed, 1), "peak_GB": round(memory * 1.073741824, 2)}


def long_conversation(number: int) -> dict[str, Any]:
    """A question and an answer that is cut to the length of a row."""
    words = " ".join(str(number * LENGTH + word) for word in range(LENGTH))
    return {"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": words}]}


def write_package(folder: Path, shape: str) -> None:
    """Write random weights in a shape, with the bundled tokenizer, as `polylm package` lays them out."""
    if folder.exists():
        return
    package_snapshot(TINY_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    write_snapshot(folder, shape, "safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **shape_config(shape).to_dict()}))


def own_trainer(
    shape: str,
    options: TrainingOptions,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    data: Rows,
    folder: Path,
    gigabytes: float | None,
) -> Any:
    """What `polylm finetune` trains with, on a device that has so many gigabytes, or what is free."""
    from modelscope_polylm.training.network import trained_model
    from modelscope_polylm.training.plan import recomputed_blocks
    from modelscope_polylm.training.trainer import FinetuneTrainer, training_arguments

    tokenizer = PolyLMTokenizer.from_pretrained(TINY_FOLDER)  # for its end token
    snapshot = dataclasses.replace(random_snapshot(shape, folder), tokenizer=tokenizer)
    kind = {"on_cpu": device.type == "cpu", "bf16": dtype == torch.bfloat16, "log": False}
    arguments = training_arguments(folder, options, steps, 1, **kind)
    arguments.save_strategy = "no"
    config = snapshot.config
    free = free_bytes(device)
    if gigabytes is not None:
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / torch.cuda.mem_get_info(device)[1], device)
        free = min(free, int(gigabytes * 1e9))
    recomputed = recomputed_blocks(config, options, dtype.itemsize, free)
    print(f"{recomputed} of {config.layers} blocks compute their activations again.", flush=True)
    model = trained_model(snapshot, options, device, dtype, recomputed_blocks=recomputed)
    return FinetuneTrainer(model, arguments, data)


def plain_trainer(
    shape: str,
    options: TrainingOptions,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    data: Rows,
    folder: Path,
) -> Any:
    """peft and transformers as their documentation uses them."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    settings: dict[str, Any] = {**SHAPES[shape], "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    with torch.device("meta"):
        model: Any = GPT2LMHeadModel(GPT2Config(**settings, activation_function="gelu_fast", use_cache=False))
    model = model.to(torch.float32 if options.method == "full" else dtype).to_empty(device=device)
    model.tie_weights()
    draw_like_the_other(model, shape, device, dtype)
    if options.method == "lora":
        model.enable_input_require_grads()
        targets = ["c_attn", "c_proj", "c_fc"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    arguments: Any = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.device_rows,
        max_steps=steps,
        learning_rate=options.learning_rate or 0.0,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=options.checkpointing is not False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)

    def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    return Trainer(model, arguments, collated, data)


def draw_like_the_other(model: Any, shape: str, device: torch.device, dtype: torch.dtype) -> None:
    """Give a GPT2LMHeadModel the random weights that `RandomWeights` has."""
    from modelscope_polylm.network.weights import PROJECTION

    torch.manual_seed(0)
    weights = RandomWeights().load(shape_config(shape), device, dtype)
    for name, parameter in model.transformer.named_parameters():
        weight = weights.pop(name)
        parameter.data.copy_(weight.t() if PROJECTION.fullmatch(name) else weight)


def timed(trainer: Any, rows: int, device: torch.device, profile: bool) -> dict[str, Any]:
    """Train, and tell the speed of the steps after the first ones, the memory, and the first loss."""
    from transformers import TrainerCallback

    ends: list[float] = []
    profiler = torch.profiler.profile(schedule=torch.profiler.schedule(wait=WARM_UP, warmup=1, active=PROFILED))

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *call: Any, **more: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append(time.perf_counter())
            if profile:
                profiler.step()

    trainer.add_callback(Clock())
    if profile:
        profiler.start()
    trainer.train()
    if profile:
        profiler.stop()
        print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=LONGEST_PROFILE))
    steps = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "tokens_per_second": round(rows * LENGTH / statistics.median(steps), 1),
        "step_seconds": [round(step, 4) for step in steps],
        "peak_GB": None if memory is None else round(memory / 1e9, 2),
        "first_loss": losses[0],
    }


if __name__ == "__main__":
    main()
