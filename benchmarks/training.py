"""How fast stage 3 trains on this machine, beside sentence-transformers' own trainer and loss.

python benchmarks/training.py RUN [--steps 8] [--rounds 3]

RUN has stage 2 done. The same rows, batches of 16 rows with their three hardest mined negatives, temperature 0.02, length 128, the embedded model; nothing is masked, so the loss is the same but for passages that stand twice in a batch.
Each way takes its turn in every round. One line a way: seconds a step (median over the steps of all rounds), how many times the peer's speed, passages a step that went through the model, and the first step's loss.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from domain_embed.automodel_format import read_training
from domain_embed.batches import plan_batches
from domain_embed.beir import read_beir
from domain_embed.encode import token_lengths
from domain_embed.layers import without_dropout
from domain_embed.loss import BatchLoss, Objective
from domain_embed.models import load_model
from domain_embed.training import Collator, _in_order, has_fast_bf16

BATCH, NEGATIVES, LENGTH, TEMPERATURE = 16, 3, 128, 0.02


class Clock(TrainerCallback):
    "Seconds and loss of every step."

    def __init__(self):
        self.seconds, self.losses = [], []

    def on_step_begin(self, args, state, control, **_):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds.append(time.perf_counter() - self.start)

    def on_log(self, args, state, control, logs=None, **_):
        self.losses += [logs["loss"]] if "loss" in logs else []


def walk(steps: int, bf16: bool, **trainer) -> Clock:
    "Some steps of a trainer."
    clock = Clock()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        learning_rate=3e-5,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
        **trainer.pop("arguments"),
    )
    made = SentenceTransformerTrainer(args=arguments, callbacks=[clock], **trainer)
    made.remove_callback(PrinterCallback)
    made.train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="steps of each turn; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows, _ = read_training(options.run / "2_prepare/train.json")
    rows = [row for row in rows if len(row.negatives) >= NEGATIVES][: BATCH * options.steps]
    texts = {p.id: p.content for p in read_beir(options.run / "2_prepare/eval_beir", split="dev").passages}
    lengths = dict(zip(texts, token_lengths(load_model("embedded", LENGTH), list(texts.values())).tolist(), strict=True))
    plan = plan_batches(rows, lengths, NEGATIVES, NEGATIVES, BATCH, 1, seed=0)
    order = [example for batch in plan for example in batch]  # the peer gets the very same batches
    columns = {"anchor": [e.row.query for e in order], "positive": [texts[e.row.positive] for e in order]}
    columns |= {f"negative_{n}": [texts[e.negatives[n]] for e in order] for n in range(NEGATIVES)}

    def peer(bf16: bool = False, dropout: bool = True) -> Clock:
        model = load_model("embedded", LENGTH)
        return walk(
            options.steps,
            bf16,
            model=model if dropout else without_dropout(model),
            arguments={"per_device_train_batch_size": BATCH, "batch_sampler": lambda data, batch_size, **_: _blocks(len(data), batch_size)},
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
        )

    def ours(bf16: bool, dropout: bool = False) -> Clock:
        model = load_model("embedded", LENGTH)
        return walk(
            options.steps,
            bf16,
            model=model if dropout else without_dropout(model),
            arguments={"per_device_train_batch_size": 1, "batch_sampler": _in_order},
            train_dataset=Dataset.from_dict({"batch": list(range(len(plan)))}),
            loss=BatchLoss(model, Objective(TEMPERATURE)),
            data_collator=Collator(model, plan, texts, {}, in_batch_negatives=True),
        )

    ways = {
        "sentence-transformers' trainer": peer,
        "the same, without dropout": lambda: peer(dropout=False),
        "the same, without dropout, bfloat16": lambda: peer(has_fast_bf16(), dropout=False),
        "ours with dropout, float32": lambda: ours(bf16=False, dropout=True),
        "ours, float32": lambda: ours(bf16=False),
        "ours": lambda: ours(has_fast_bf16()),
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            clocks[name].append(way())
    seconds = {name: float(np.median([s for clock in own for s in clock.seconds[1:]])) for name, own in clocks.items()}
    distinct = np.mean([len({p for e in batch for p in e.passages}) for batch in plan])
    print("| way | seconds a step | speed | passages a step | first loss |\n|---|---|---|---|---|")
    for name, own in clocks.items():
        passages = distinct if name.startswith("ours") else BATCH * (1 + NEGATIVES)
        print(f"| {name} | {seconds[name]:.2f} | {seconds[next(iter(ways))] / seconds[name]:.2f}× | {passages:.1f} | {own[0].losses[0]:.3f} |")


def _blocks(rows: int, size: int) -> torch.utils.data.BatchSampler:
    "Rows in their order."
    return torch.utils.data.BatchSampler(range(rows), batch_size=size, drop_last=False)


if __name__ == "__main__":
    main()
