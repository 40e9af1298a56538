"""Stage 3 on a tiny run: a kill in the middle, and what can be asked of it."""

import json
import shutil
from unittest.mock import patch

import pytest
import torch
from conftest import assert_ok, domain_embed, run_here, set_options
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from domain_embed import trials
from domain_embed.jsonl import read_jsonl
from domain_embed.manifests import read_manifest
from domain_embed.models import load_model, model_path
from domain_embed.profiles import load_profile
from domain_embed.runs import InputError
from domain_embed.training_plot import Curve

SMALL = ["finetune.batch_size=4", "finetune.evaluations_per_epoch=2", "finetune.merge=false"]


class Killed(Exception):
    "As a kill, but one that can be caught."


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tiny_run, tmp_path):
    expected, run_dir = (shutil.copytree(tiny_run[0], tmp_path / name) for name in ("whole", "killed"))
    kept = read_manifest(expected, "finetune")["metrics"]
    assert set(kept["merge"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"} and kept["val_ndcg@10_best"] == max(kept["merge"].values())
    whole, ended = run_here("finetune", expected, *SMALL), Curve.on_step_end

    def kill(self, args, state, control, **more):
        ended(self, args, state, control, **more)
        if state.global_step == 4:
            raise Killed

    with patch.object(Curve, "on_step_end", kill), pytest.raises(Killed):
        run_here("finetune", run_dir, *SMALL)
    assert list(run_dir.glob(".work/checkpoints/*/0/checkpoint-*"))
    continued = []
    with patch.object(Curve, "on_step_end", lambda self, args, state, control, **more: continued.append(state.global_step)):
        found = run_here("finetune", run_dir, *SMALL)
    assert continued[0] > 1 and found["outputs"] == whole["outputs"] and found["metrics"] == whole["metrics"]
    assert not list(run_dir.glob(".work/checkpoints/*"))


@pytest.mark.slow
def test_all_that_can_be_asked_of_one_training(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    asked = ["distill_weight=0.5", "negative_pool=4", "mini_batch_size=6", "matryoshka_dims=['128', '32']", "lora_rank=4", "layerwise_lr_decay=0.8"]
    more = ["merge=false", "gradient_checkpointing=on", "learning_rate=1e-3", "batch_size=4", "early_stopping_patience=1"]
    metrics = run_here("finetune", run_dir, *(f"finetune.{setting}" for setting in (*asked, *more)))["metrics"]
    assert set(metrics["merge"]) == {"0.0", "1.0"} and metrics["val_ndcg@10_best"] == metrics["merge"]["1.0"]
    assert any("loss" in row for row in read_jsonl(run_dir / "3_finetune/curve.jsonl"))
    assert list(run_dir.glob("tensorboard/*/events.out.*"))
    card = (run_dir / "3_finetune/model/README.md").read_text()
    assert "the best checkpoint's" in card and "license: apache-2.0" in card and "`lora_rank`: 4" in card and "written by `embedded`" in card
    metadata = ModelCard(card).data
    assert metadata.base_model == "sentence-transformers/all-MiniLM-L6-v2" and metadata.eval_results[0].metric_value == metrics["val_ndcg@10_best"]
    tuned, base = SentenceTransformer(str(run_dir / "3_finetune/model")), load_model("embedded", 64)
    assert tuned.max_seq_length == 64 and tuned.state_dict().keys() == base.state_dict().keys()
    changed = [name for name, weight in tuned.state_dict().items() if not torch.equal(weight.cpu(), base.state_dict()[name].cpu())]
    assert changed and all("LayerNorm" not in name and "embeddings" not in name for name in changed)
    with pytest.raises(InputError, match="'384' is no number of dimensions below the model's 384"):
        run_here("finetune", run_dir, "finetune.matryoshka_dims=['384']")


CODE = "from transformers import BertModel\n\n\nclass OwnModel(BertModel):\n    pass\n"


@pytest.mark.slow
def test_a_model_that_comes_with_code_goes_through_the_notebook(tiny_run, tmp_path):
    run_dir, folder = shutil.copytree(tiny_run[0], tmp_path / "copy"), shutil.copytree(model_path("embedded"), tmp_path / "own")
    (folder / "own_code.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own_code.OwnModel"}, "architectures": ["OwnModel"]}))
    options = set_options(f"base_model={folder}", "trust_remote_code=true", "finetune.train_fraction=0.2")
    assert_ok(domain_embed("finetune", *options, run_dir))
    assert (run_dir / "3_finetune/model/own_code.py").exists() and (run_dir / "notebooks/30_finetune.ipynb").exists()


def test_the_recipe_s_training(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    recipe = load_profile("recipe")["finetune"]
    names = ("in_batch_negatives", "checkpoint", "merge", "negatives_per_query", "negative_pool", "temperature", "warmup_steps")
    asked = [f"finetune.{name}={recipe[name]}" for name in names]
    manifests = [run_here(stage, run_dir, "prepare.val_fraction=0", *asked) for stage in ("prepare", "finetune")]
    assert manifests[0]["metrics"]["questions"]["dev"] == 0 and recipe["in_batch_negatives"] is False and recipe["checkpoint"] == "last"
    tuned, base = (model.state_dict() for model in (load_model(str(run_dir / "3_finetune/model"), 64), load_model("embedded", 64)))
    assert any(not torch.equal(tuned[name], base[name]) for name in base) and not any("val_ndcg@10" in row for row in read_jsonl(run_dir / "3_finetune/curve.jsonl"))
    with pytest.raises(InputError, match="train_max_length = 64 is more than max_length = 32"):
        run_here("finetune", run_dir, "max_length=32", "finetune.train_max_length=64")


@pytest.mark.slow
def test_a_sweep_keeps_the_best_and_does_nothing_twice(tiny_run, tmp_path):
    run_dir, trained = shutil.copytree(tiny_run[0], tmp_path / "copy"), []
    asked = ["finetune.merge=false", "finetune.batch_size=16", "finetune.sweep=['learning_rate=1e-9,1e-3', 'train_fraction=0.5,1']"]

    def counted(settings, *more, really=trials.tune):
        trained.append((settings.learning_rate, settings.train_fraction))
        if len(trained) == 3:
            raise Killed
        return really(settings, *more)

    with patch.object(trials, "tune", counted), pytest.raises(Killed):
        run_here("finetune", run_dir, *asked)
    with patch.object(trials, "tune", counted):
        metrics = run_here("finetune", run_dir, *asked)["metrics"]
    assert trained == [(1e-9, 0.5), (1e-9, 1.0), (1e-3, 0.5), (1e-3, 0.5), (1e-3, 1.0)]
    whole = {t["settings"]["learning_rate"]: t["val_ndcg@10"] for t in metrics["trials"] if t["settings"]["train_fraction"] == 1}
    assert metrics["val_ndcg@10_best"] == max(whole.values()) and metrics["kept_settings"]["train_fraction"] == 1
    assert whole[metrics["kept_settings"]["learning_rate"]] == max(whole.values())
    assert metrics["more_documents"].startswith(("More documents ", "Whether more documents "))
    with pytest.raises(InputError, match=r"'seeds=1,2': expected name=value,value with one of the names epochs, .*, seed"):
        run_here("finetune", run_dir, "finetune.sweep=['seeds=1,2']")
