"""The recipe's own scale: memory as it was computed, and Llama-style encoders of random weights through stages 3 and 5."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import run_here
from encoders import REAL, REAL_LAYERS, REAL_VOCABULARY, random_encoder
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import MPNetConfig, MPNetModel

from domain_embed.memory import plan_memory
from domain_embed.models import load_model
from domain_embed.runs import InputError

STEPS = """
import json, re, sys
from pathlib import Path
import torch
from domain_embed import distributed
from domain_embed.batches import Example
from domain_embed.job import Job
from domain_embed.loss import Objective
from domain_embed.automodel_format import TrainingRow
from domain_embed.training import Options

def resident(field):  # bytes
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

seen = {}
def train(model, *arguments, really=distributed.train):
    seen["weights"] = sum(w.numel() * w.element_size() for w in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    seen["before"] = resident("VmRSS")
    return really(model, *arguments)

def plan(*arguments, really=distributed.plan_memory):
    seen["plan"] = really(*arguments)
    return seen["plan"]

if __name__ == "__main__":
    folder, mini_batch_size, checkpointing = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    distributed.train, distributed.plan_memory = train, plan
    text = "the pump stops at once when water is cold " * 40
    rows = [TrainingRow(f"q{n}_0", text, f"p{n}", [(f"n{n}", 0.5)], question=f"q{n}") for n in range(8)]
    texts = {p: text for row in rows for p in (row.positive, row.negatives[0][0])}
    steps = [[Example(row, (row.negatives[0][0],)) for row in rows]] * 2
    options = Options(learning_rate=1e-4, warmup_steps=0, weight_decay=0.0, evaluations=1, seed=0, keep="last", mini_batch_size=mini_batch_size)
    job = Job((str(folder / "model"), 256, "", "", False), 128, 0, steps, texts, {}, Objective(0.05, 0.0, 1.0), None, options, checkpointing=checkpointing)
    distributed.run_job(job, folder)
    print(json.dumps({"computed": seen["plan"].needed, "measured": resident("VmHWM") - seen["before"] + seen["weights"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "layers", "mini_batch_size", "checkpointing"),
    [(512, 6, 0, "off"), (512, 6, 8, "on"), (768, 4, 4, "off")],
)
def test_memory_is_what_was_computed(tmp_path, hidden, layers, mini_batch_size, checkpointing):
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 256}
    random_encoder(tmp_path, num_hidden_layers=layers, **sizes)
    (tmp_path / "steps.py").write_text(STEPS)
    done = subprocess.run([sys.executable, tmp_path / "steps.py", tmp_path, str(mini_batch_size), checkpointing], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{size / 2**20:.0f} MiB" for name, size in found.items()})
    assert 0.75 < found["computed"] / found["measured"] < 1.3  # a tenth is the trainer itself


def test_a_model_without_gradient_checkpointing():
    config = MPNetConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = load_model("embedded", 16, device="cpu")
    model[0].model = MPNetModel(config)
    model[1] = Pooling(32, "mean")
    plan = plan_memory(model, 16, 8, autocast=False)
    assert not plan.gradient_checkpointing and plan.mini_batch_size == 0
    with pytest.raises(InputError, match="MPNetModel does not support it"):
        plan_memory(model, 16, 8, autocast=False, checkpointing="on")


def through_stages(run_dir, model, *settings):
    "Fine-tune and export a model in a copy of a run: both manifests."
    asked = (f"base_model={model}", "finetune.train_max_length=16", "finetune.val_passages=8", "finetune.train_fraction=0.1", "finetune.batch_size=16", "export.parity_passages=8")
    return [run_here(stage, run_dir, *asked, *settings) for stage in ("finetune", "export")]


@pytest.mark.slow
def test_a_model_of_the_recipes_width(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    path = random_encoder(tmp_path, dtype=torch.bfloat16, num_hidden_layers=2, **REAL)
    tuned, exported = through_stages(run_dir, path, "finetune.epochs=2", "finetune.mini_batch_size=4", "finetune.learning_rate=1e-3", "finetune.warmup_steps=0", "finetune.merge=false", "export.int8=false")
    saved = load_model(str(run_dir / "3_finetune/model"), 64, device="cpu")
    assert next(saved.parameters()).dtype == torch.bfloat16 and tuned["metrics"]["steps"] >= 1
    changed = [not torch.equal(weight, before) for weight, before in zip(saved.parameters(), load_model(path, 64, device="cpu").parameters(), strict=True)]
    assert any(changed) and "mini-batch" in tuned["timings"]["memory"]
    assert exported["metrics"]["precision"] == "bfloat16" and exported["metrics"]["parity"]["onnx fp32"]["cosine_min"] > 0.9999


@pytest.mark.slow
def test_a_model_of_the_recipes_size(tiny_run, tmp_path):
    run_dir, start = shutil.copytree(tiny_run[0], tmp_path / "copy"), time.monotonic()
    path = random_encoder(tmp_path, REAL_VOCABULARY, torch.bfloat16, num_hidden_layers=REAL_LAYERS, **REAL)
    print(f"written after {time.monotonic() - start:.0f} s", flush=True)
    tuned, exported = through_stages(run_dir, path, "finetune.epochs=2", "finetune.mini_batch_size=4", "finetune.lora_rank=8", "finetune.warmup_steps=0", "finetune.merge=false", "export.int8=false")
    print(tuned["timings"], tuned["seconds"], exported["metrics"]["parity"], exported["seconds"])
    parity = exported["metrics"]["parity"]["onnx fp32"]
    assert parity["megabytes"] > 4000 and parity["cosine_min"] > 0.9999
    with pytest.raises(InputError, match=r"this training needs [0-9.]+ GiB .* are free: set finetune.lora_rank"):
        through_stages(run_dir, path, "finetune.mini_batch_size=512", "finetune.gradient_checkpointing=off", "finetune.train_max_length=64")
