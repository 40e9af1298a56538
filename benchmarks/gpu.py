"""What one GPU does: training, search, encoding and the exported graph, each beside its peer on the same machine.

python benchmarks/gpu.py [--model FOLDER] [--out gpu.json] [--limit 180] [--tiny] [SECTION ...]      sections: machine train search encode onnx tensorrt; default: all

The large model is an encoder of Llama 3.2 1B's shape with bidirectional attention and random weights (1.24 billion parameters, .97 billion without the embedding table), the small one --model (default: the embedded one).
Ours and the peer take turns; times are medians. A section that fails prints its traceback, and one that takes longer than --limit seconds is stopped; what was measured until then stays in the file and the tables.
Training: TFLOP/s = f × parameters (without the embedding table) × tokens (without padding) / seconds. f is 6 (forward 2, backward 4), 4 with LoRA (no gradients of the weights), and 2 more with gradient caching (mini-batches), whose first forward pass
stores nothing. The attention's own products are not counted. A step's seconds include tokenizing; all texts of a batch are different, so that ours and the peer compute the same loss. Memory: computed by `plan_memory`, measured as the peak of PyTorch's allocator.
"""

import argparse
import gc
import json
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import sentence_transformers
import torch
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import semantic_search
from transformers import EuroBertConfig, EuroBertModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from domain_embed import training
from domain_embed.automodel_format import TrainingRow
from domain_embed.batches import Example, plan_batches
from domain_embed.encode import encode, token_lengths
from domain_embed.graphs import write_graphs
from domain_embed.inference import load_exported, run_graph, tokenize
from domain_embed.layers import add_lora, without_dropout
from domain_embed.loss import Objective
from domain_embed.memory import plan_memory
from domain_embed.models import cast_weights, load_model
from domain_embed.providers import why_no_tensorrt
from domain_embed.search import search, top_k

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "vocab_size": 128_256,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 30_522}
LENGTH, NEGATIVES, TEMPERATURE, DEPTH = 512, 4, 0.02, 100  # the recipe's
Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Setup:
    "The command line."

    model: str
    tiny: bool

    def number(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real

    def small(self) -> SentenceTransformer:
        return load_model(self.model, LENGTH, device=DEVICE).float()

    def large(self, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
        "The same random weights at every call; the tokenizer is the small model's."
        model = load_model(self.model, LENGTH, device=DEVICE)
        torch.manual_seed(0)
        shape = TINY if self.tiny else SHAPE
        with torch.device(DEVICE):
            model[0].model = EuroBertModel(
                EuroBertConfig(pad_token_id=0, bos_token_id=101, eos_token_id=102, max_position_embeddings=LENGTH, **shape)
            )
        model[1] = Pooling(shape["hidden_size"], "mean")
        model.max_seq_length = LENGTH
        return cast_weights(model.eval(), dtype)


def wait() -> float:
    "The time when the GPU has done everything."
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(way: Callable[[], object]) -> tuple[float, object]:
    start = wait()
    result = way()
    return wait() - start, result


def turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, object]]:
    "Median seconds and last result of each way, after a first round that is not timed."
    done = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds + 1)]
    return {name: (median(turn[name][0] for turn in done[1:]), done[-1][name][1]) for name in ways}


def free() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:  # GiB
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0


def make_texts(model: SentenceTransformer, tokens: np.ndarray, seed: int) -> list[str]:
    "Different texts of random words with a given number of tokens."
    words = np.array(sorted(word for word in model.tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower() and len(word) > 3))
    rng = np.random.default_rng(seed)
    return [" ".join(words[rng.integers(len(words), size=n - 2)]) for n in tokens]  # two are special tokens


def lowest_cosine(vectors: np.ndarray, reference: np.ndarray) -> float:
    products = (vectors.astype(np.float64) * reference).sum(1)
    return float((products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)).min())


def machine(setup: Setup) -> Rows:
    "Versions, and what the machine reaches at most."
    for module in (torch, transformers, sentence_transformers, onnxruntime):
        yield {"what": module.__name__, "value": module.__version__}
    yield {"what": "device", "value": torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"}
    yield {"what": "attention", "value": setup.large()[0].auto_model.config._attn_implementation}
    yield {"what": "TensorRT", "value": why_no_tensorrt() or "installed"}
    size = setup.number(8192, 256)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
        took, _ = turns({"": lambda a=a, b=b: [a @ b for _ in range(10)]}, 3)[""]
        yield {"what": f"matrix product, {dtype}, TFLOP/s", "value": round(10 * 2 * size**3 / took / 1e12, 1)}


@dataclass(frozen=True)
class Case:
    "A training."

    name: str
    lora: int
    rows: int
    mini_batch: int  # 0: as `plan_memory` says
    tokens: tuple[int, int]  # fewest and most of a passage


CASES = (
    Case("full", 0, 32, 16, (512, 512)),
    Case("LoRA", 16, 32, 16, (512, 512)),
    Case("full, mixed lengths", 0, 32, 16, (32, 512)),
    Case("LoRA, short", 16, 128, 64, (128, 128)),
    Case("full, mini-batch chosen", 0, 32, 0, (512, 512)),
)


class Clock(TrainerCallback):
    "When each step began and ended, and the losses."

    def __init__(self):
        self.begun, self.ended, self.losses = [], [], []

    def on_step_begin(self, args, state, control, **_):
        self.begun.append(wait())

    def on_step_end(self, args, state, control, **_):
        self.ended.append(wait())

    def on_log(self, args, state, control, logs=None, **_):
        self.losses += [logs["loss"]] if "loss" in logs else []

    @property
    def steps(self) -> list[float]:
        "Seconds from one step's end to the next one's."
        return [after - before for before, after in pairwise(self.ended)]

    @property
    def between(self) -> list[float]:
        "Seconds from a step's end to the next one's begin: tokenizing."
        return [begun - ended for ended, begun in zip(self.ended, self.begun[1:], strict=False)]


def ours(model: SentenceTransformer, case: Case, checkpointing: bool, plan: list[list[Example]], texts: dict[str, str]) -> Clock:
    "What `training.train` does, without saving checkpoints."
    clock = Clock()
    options = training.Options(1e-5, 1, 0.01, evaluations=1, seed=0, keep="last", mini_batch_size=case.mini_batch)
    collator = training.Collator(model, plan, texts, {}, in_batch_negatives=True)
    if checkpointing:
        model[0].auto_model.activation_checkpointing_enable()
    training.FIXED_ARGUMENTS["save_strategy"] = "no"
    with tempfile.TemporaryDirectory() as work:
        training._trainer(model, plan, collator, Objective(TEMPERATURE), None, Path(work), options, [clock]).train()
    return clock


def peer(model: SentenceTransformer, case: Case, checkpointing: bool, plan: list[list[Example]], texts: dict[str, str]) -> Clock:
    "sentence-transformers' trainer and loss, on the same batches."
    clock, order = Clock(), [example for batch in plan for example in batch]
    columns = {"anchor": [e.row.query for e in order]}
    columns |= {f"passage_{n}": [texts[e.passages[n]] for e in order] for n in range(1 + NEGATIVES)}
    cached = {"mini_batch_size": case.mini_batch} if case.mini_batch else {}
    loss = (CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss)(model, scale=1 / TEMPERATURE, **cached)
    if checkpointing:
        model[0].auto_model.activation_checkpointing_enable()
    with tempfile.TemporaryDirectory() as work:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=work,
            per_device_train_batch_size=case.rows,
            batch_sampler=lambda data, batch_size, **_: torch.utils.data.BatchSampler(range(len(data)), batch_size, drop_last=False),
            num_train_epochs=1,
            learning_rate=1e-5,
            weight_decay=0.01,
            bf16=training.has_fast_bf16(),
            use_cpu=DEVICE == "cpu",
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        )
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock


def make_plan(model: SentenceTransformer, case: Case, steps: int) -> tuple[list[list[Example]], dict[str, str]]:
    "Planned batches and their passages."
    rows, rng = steps * case.rows, np.random.default_rng(0)
    names = [f"p{n}_{k}" for n in range(rows) for k in range(1 + NEGATIVES)]
    lengths = rng.integers(case.tokens[0], case.tokens[1] + 1, size=len(names))
    queries = make_texts(model, np.full(rows, 24), 1)
    made = [TrainingRow(f"q{n}_0", q, f"p{n}_0", [(f"p{n}_{k + 1}", 0.5) for k in range(NEGATIVES)], question=f"q{n}") for n, q in enumerate(queries)]
    plan = plan_batches(made, dict(zip(names, lengths.tolist(), strict=True)), NEGATIVES, 0, case.rows, 1, seed=0)
    return plan, dict(zip(names, make_texts(model, lengths, 2), strict=True))


def train(setup: Setup) -> Rows:
    "Steps of the large model."
    for case in CASES:
        if setup.tiny:
            case = replace(case, rows=4, mini_batch=min(case.mini_batch, 2), tokens=(case.tokens[0] // 16, case.tokens[1] // 16))
        trained = None
        plan, texts = make_plan(setup.large(), case, steps=3)
        clocks: dict[str, list[Clock]] = {"ours": [], "peer": []}
        peaks: dict[str, float] = {}
        for way in (ours, peer) * setup.number(2, 1):
            free()
            model = without_dropout(setup.large())
            if case.lora:
                add_lora(model, case.lora)
            if trained is None:
                count = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name and "embed_tokens" not in name)
                tokens = sum(token_lengths(model, list(texts.values()) + [e.row.query for batch in plan for e in batch])) / len(plan)
                planned = plan_memory(model, case.tokens[1], case.rows * (2 + NEGATIVES), training.has_fast_bf16(), case.mini_batch)
                trained = replace(case, mini_batch=planned.mini_batch_size)
                free()
            clocks[way.__name__].append(way(model, trained, planned.gradient_checkpointing, plan, texts))
            peaks[way.__name__] = peak()
            del model
        factor = (4 if case.lora else 6) + (2 if trained.mini_batch else 0) + (2 if planned.gradient_checkpointing else 0)
        took = {name: median(s for clock in own for s in clock.steps) for name, own in clocks.items()}
        rate = factor * count * tokens / took["ours"] / 1e12
        yield {
            "training": case.name,
            "rows, mini-batch": f"{case.rows}, {trained.mini_batch}{', checkpointing' if planned.gradient_checkpointing else ''}",
            "tokens a step": int(tokens),
            "seconds a step": round(took["ours"], 3),
            "of them between steps": round(median(s for clock in clocks["ours"] for s in clock.between), 3),
            "tokens/s": int(tokens / took["ours"]),
            "TFLOP/s": round(rate, 1),
            "of 790": f"{rate / 790:.0%}",
            "sentence-transformers, seconds": round(took["peer"], 3),
            "ratio": round(took["peer"] / took["ours"], 2),
            "first loss, ours and theirs": f"{clocks['ours'][0].losses[0]:.4f}, {clocks['peer'][0].losses[0]:.4f}",
            "GiB computed": round(planned.needed / 2**30, 1),
            "GiB measured, ours and theirs": f"{peaks['ours']:.1f}, {peaks['peer']:.1f}",
        }


def plain_search(queries: np.ndarray, passages: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    "The shortest program that keeps the best on the GPU."
    asked = torch.from_numpy(queries).to(DEVICE, dtype)
    scores, indices = asked.new_full((len(queries), 0), 0), torch.empty((len(queries), 0), dtype=torch.int64, device=DEVICE)
    for start in range(0, len(passages), 65_536):
        block = torch.from_numpy(passages[start : start + 65_536]).to(DEVICE).to(dtype)
        found = (asked @ block.T).topk(min(DEPTH, len(block)), dim=1)
        scores, indices = torch.cat([scores, found.values], 1), torch.cat([indices, found.indices + start], 1)
        scores, order = scores.topk(min(DEPTH, scores.shape[1]), dim=1)
        indices = indices.gather(1, order)
    return scores.float().cpu().numpy(), indices.cpu().numpy()


def search_section(setup: Setup) -> Rows:
    "Vectors in the machine's memory: a centre of 2,000, plus noise."
    dimensions, generator = setup.number(1024, 64), torch.Generator(DEVICE).manual_seed(0)

    def draw(count: int, around: torch.Tensor, noise: float) -> torch.Tensor:
        chosen = around[torch.randint(len(around), (count,), generator=generator, device=DEVICE)]
        return torch.nn.functional.normalize(chosen + noise * torch.randn(chosen.shape, generator=generator, device=DEVICE))

    on_device = draw(setup.number(1_000_000, 3_000), torch.randn(2000, dimensions, generator=generator, device=DEVICE), 0.7)
    queries, passages = draw(setup.number(4096, 64), on_device, 0.03).cpu().numpy(), on_device.cpu().numpy()
    del on_device
    free()
    ways = {
        "ours: search(), fp32": lambda: (lambda found: (found.scores, found.indices))(search(queries, passages, DEPTH)),
        "ours: top_k, fp16 product": lambda: top_k(queries, passages, DEPTH, dtype=torch.float16),
        "PyTorch, fp32": lambda: plain_search(queries, passages, torch.float32),
        "PyTorch, fp16": lambda: plain_search(queries, passages, torch.float16),
    }
    checked = setup.number(64, 16)
    reference_scores, reference = top_k(queries[:checked], passages, DEPTH, device="cpu")
    for name, (took, (scores, indices)) in turns(ways, 2).items():
        same = np.mean([len(np.intersect1d(own, exact)) / len(exact) for own, exact in zip(indices[:checked], reference, strict=True)])
        yield {
            "search": name,
            "passages × queries × dimensions": f"{len(passages):,} × {len(queries):,} × {dimensions}",
            "seconds": round(took, 3),
            "pairs/s": f"{len(passages) * len(queries) / took:.1e}",
            f"same top {DEPTH} as on the CPU": f"{same:.4%}",
            "largest difference of scores": f"{np.abs(scores[:checked] - reference_scores).max():.0e}",
            "GiB": round(peak(), 1),
        }
    corpus = torch.from_numpy(passages[: len(passages) // 10])
    took, _ = seconds(lambda: semantic_search(torch.from_numpy(queries).to(DEVICE), corpus.to(DEVICE), top_k=DEPTH))
    yield {
        "search": "sentence-transformers' semantic_search, a tenth of the passages",
        "seconds": round(took, 3),
        "pairs/s": f"{len(corpus) * len(queries) / took:.1e}",
    }


def encode_section(setup: Setup) -> Rows:
    "Passages of 16 tokens to the model's longest, in random order."
    plans = (
        ("small", torch.float32, 10_000),
        ("small", torch.float16, 10_000),
        ("large", torch.float32, 100),
        ("large", torch.bfloat16, 1000),
        ("large", torch.float16, 1000),
    )
    for size, dtype, count in plans:
        free()
        model = getattr(setup, size)()
        lengths = np.random.default_rng(0).integers(16, model.max_seq_length + 1, size=setup.number(count, 8))
        texts = make_texts(model, lengths, 3)
        reference = encode(model, texts[:200], "document", desc="")
        cast_weights(model, dtype)
        options = {"prompt_name": "document", "normalize_embeddings": True, "show_progress_bar": False}
        ways = {
            "ours": lambda m=model, t=texts: encode(m, t, "document", desc=""),
            "peer": lambda m=model, t=texts, o=options: m.encode(t, **o),
            "peer 256": lambda m=model, t=texts, o=options: m.encode(t, batch_size=256, **o),
            "tokenizing": lambda m=model, t=texts: token_lengths(m, t),
        }
        done = turns(ways, 2)
        tokens = int(token_lengths(model, texts).sum())
        parameters = sum(weight.numel() for name, weight in model.named_parameters() if "embed" not in name)
        yield {
            "encoding": f"{size} model, {dtype}".replace("torch.", ""),
            "texts, tokens": f"{len(texts):,}, {tokens:,}",
            "seconds": round(done["ours"][0], 3),
            "of them counting tokens": round(done["tokenizing"][0], 3),
            "texts/s": int(len(texts) / done["ours"][0]),
            "TFLOP/s": round(2 * parameters * tokens / done["ours"][0] / 1e12, 1),
            "SentenceTransformer.encode, batch 32": round(done["peer"][0], 3),
            "batch 256": round(done["peer 256"][0], 3),
            "ratio to 32, to 256": ", ".join(f"{done[name][0] / done['ours'][0]:.2f}" for name in ("peer", "peer 256")),
            "lowest cosine to fp32": round(lowest_cosine(done["ours"][1][:200], reference), 6),
            "largest |norm − 1|": f"{np.abs(np.linalg.norm(done['ours'][1], axis=1) - 1).max():.0e}",
            "GiB": round(peak(), 1),
        }


def onnx_section(setup: Setup) -> Rows:
    "The exported graph against `encode`, in one precision."
    getattr(onnxruntime, "preload_dlls", lambda: None)()  # CUDA's libraries from the wheels that PyTorch brought
    for size, dtype, count in (("small", torch.float32, 4000), ("small", torch.float16, 4000), ("large", torch.float16, 500)):
        free()
        model = getattr(setup, size)()
        texts = make_texts(model, np.random.default_rng(0).integers(16, model.max_seq_length + 1, size=setup.number(count, 6)), 4)
        reference = encode(model, texts[:200], "document", desc="")
        cast_weights(model, dtype)
        took, vectors = turns({"": lambda m=model, t=texts: encode(m, t, "document", desc="")}, 2)[""]
        with tempfile.TemporaryDirectory() as name:
            exporting, paths = seconds(lambda n=name, m=model, d=dtype: write_graphs(m, Path(n), [] if d is torch.float32 else ["fp16"]))
            path = paths["onnx fp32" if dtype is torch.float32 else "onnx fp16"]
            del model
            free()
            loading, graph = seconds(lambda p=path: load_exported(p.parent, p.name))
            ran, found = turns({"": lambda g=graph, t=texts: run_graph(g, tokenize(g, t, "document"))}, 2)[""]
        yield {
            "graph": f"{size} model, {dtype}".replace("torch.", ""),
            "provider": graph.provider,
            "seconds to export, to load": f"{exporting:.1f}, {loading:.1f}",
            "texts": len(texts),
            "texts/s": int(len(texts) / ran),
            "PyTorch, texts/s": int(len(texts) / took),
            "ratio": round(took / ran, 2),
            "lowest cosine to PyTorch": round(lowest_cosine(found, vectors), 6),
            "to PyTorch in fp32": round(lowest_cosine(found[:200], reference), 6),
        }


def tensorrt_section(setup: Setup) -> Rows:
    "Both models' graphs for TensorRT, through ONNX Runtime, against the 16-bit graph on CUDA."
    if reason := why_no_tensorrt():
        yield {"engine": reason}
        return
    for size, count in (("small", 4096), ("large", 512)):
        free()
        model = getattr(setup, size)()
        texts = make_texts(model, np.random.default_rng(0).integers(16, model.max_seq_length + 1, size=setup.number(count, 64)), 4)
        reference = encode(model, texts[:200], "document", desc="")
        with tempfile.TemporaryDirectory() as name:
            paths = write_graphs(model, Path(name), ["fp16", "tensorrt"], usual=(16 + model.max_seq_length) // 2)
            del model
            free()
            for graph in ("onnx fp16", "tensorrt fp16"):
                loading, exported = seconds(lambda path=paths[graph]: load_exported(path.parent, path.name))
                ran, found = turns({"": lambda g=exported, t=texts: run_graph(g, tokenize(g, t, "document"))}, 2)[""]
                yield {
                    "graph": f"{size} model, {graph}",
                    "provider": exported.provider,
                    "seconds to load": round(loading, 1),
                    "texts/s": int(len(texts) / ran),
                    "lowest cosine to PyTorch in fp32": round(lowest_cosine(found[:200], reference), 6),
                }


SECTIONS = {
    "machine": machine,
    "train": train,
    "search": search_section,
    "encode": encode_section,
    "onnx": onnx_section,
    "tensorrt": tensorrt_section,
}


def stop(*_: object) -> None:
    raise TimeoutError("the section took too long: --limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="default: all")
    parser.add_argument("--model", default="embedded", help="the small model: a folder or 'embedded'")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--limit", type=int, default=180, help="seconds a section may take")
    parser.add_argument("--tiny", action="store_true", help="sizes at which a CPU shows that it works")
    options = parser.parse_args()
    setup, results = Setup(options.model, options.tiny), {}
    signal.signal(signal.SIGALRM, stop)
    for name in options.sections or SECTIONS:
        rows, start = results.setdefault(name, []), time.monotonic()
        try:
            signal.alarm(options.limit)
            for row in SECTIONS[name](setup):
                rows.append(row)
                print(json.dumps(row, ensure_ascii=False), flush=True)
                options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except Exception:  # noqa: BLE001 - the next section may work
            print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
        finally:
            signal.alarm(0)
        free()
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for rows in filter(None, results.values()):
        columns = list(dict.fromkeys(column for row in rows for column in row))
        print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        print("\n".join("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows), flush=True)


if __name__ == "__main__":
    main()
