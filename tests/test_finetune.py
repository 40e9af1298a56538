"""Stage 3 on a tiny run: a kill in the middle, and what can be asked of it."""

import shutil
from unittest.mock import patch

import pytest
from conftest import run_here
from sentence_transformers import SentenceTransformer

from domain_embed.beir import read_jsonl
from domain_embed.runs import InputError
from domain_embed.training import Curve

SMALL = ["finetune.batch_size=4", "finetune.evaluations_per_epoch=2", "finetune.merge=false"]


class Killed(Exception):
    "As a kill, but one that can be caught."


def test_a_killed_training_ends_with_the_same_weights(tiny_run, tmp_path):
    expected, run_dir = (shutil.copytree(tiny_run[0], tmp_path / name) for name in ("whole", "killed"))
    whole, ended = run_here("finetune", expected, *SMALL), Curve.on_step_end

    def kill(self, args, state, control, **more):
        ended(self, args, state, control, **more)
        if state.global_step == 4:
            raise Killed

    with patch.object(Curve, "on_step_end", kill), pytest.raises(Killed):
        run_here("finetune", run_dir, *SMALL)
    assert list(run_dir.glob(".work/checkpoints/*/checkpoint-*"))
    continued = []
    with patch.object(Curve, "on_step_end", lambda self, args, state, control, **more: continued.append(state.global_step)):
        found = run_here("finetune", run_dir, *SMALL)
    assert continued[0] > 1 and found["outputs"] == whole["outputs"] and found["metrics"] == whole["metrics"]
    assert not list(run_dir.glob(".work/checkpoints/*"))


def test_hard_labels_in_pieces_for_short_vectors(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    asked = ["finetune.soft_labels=0.0", "finetune.draw_from=0", "finetune.piece=6", "finetune.matryoshka=['128', '32']"]
    manifest = run_here("finetune", run_dir, *asked)
    metrics = manifest["metrics"]
    assert (
        set(metrics["merge"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"}
        and metrics["val_ndcg@10_best"] == max(metrics["merge"].values()) >= metrics["val_ndcg@10_base"]
    )
    assert any("loss" in row for row in read_jsonl(run_dir / "3_finetune/curve.jsonl"))
    assert f"{metrics['merge_share']:.0%} of the way" in (run_dir / "3_finetune/model/README.md").read_text()
    assert SentenceTransformer(str(run_dir / "3_finetune/model")).max_seq_length == 64
    with pytest.raises(InputError, match="'384' is no number of dimensions below the model's 384"):
        run_here("finetune", run_dir, "finetune.matryoshka=['384']")
