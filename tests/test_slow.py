"""Minutes on two cores: ten kills, and TensorRT's planner on the CPU."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import domain_embed, set_options

from domain_embed.runs import STAGES, read_manifest

pytestmark = pytest.mark.slow


def test_ten_kills_at_random_moments_change_nothing(documents, tiny_run, tmp_path):
    run_dir, random_ = tmp_path / "killed", random.Random(0)
    command = [sys.executable, "-m", "domain_embed.pipeline", "run", "--documents", str(documents), *set_options(), str(run_dir)]
    killed = 0
    while killed < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random_.uniform(1, 30))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        else:  # it ended before: begin again, the kills go on
            assert process.returncode == 0
            shutil.rmtree(run_dir)
    assert domain_embed("run", run_dir).returncode == 0
    for stage in STAGES[:5]:
        found, expected = read_manifest(run_dir, stage), read_manifest(tiny_run[0], stage)
        assert found["metrics"] == expected["metrics"], stage
        assert found["outputs"] == expected["outputs"], stage


def test_tensorrt_plans_the_graph(tiny_run, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    from domain_embed.tensorrt_export import build_engine

    plan = build_engine(trt, tiny_run[0] / "5_export/onnx/model.onnx", tmp_path / "model.plan", max_length=64)
    assert plan.stat().st_size > 10_000_000
