"""Minutes on two cores: ten kills, and TensorRT's planner on the CPU."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import COMMAND, domain_embed, set_options

from domain_embed.runs import STAGES
from domain_embed.stages import read_manifest

pytestmark = pytest.mark.slow


def test_ten_kills_at_random_moments_change_nothing(documents, tiny_run, tmp_path):
    moments = random.Random(0)
    for moment in (moments.uniform(1, 100) for _ in range(10)):
        run_dir = tmp_path / "killed"
        command = ["run", "--documents", str(documents), *set_options(), str(run_dir)]
        process = subprocess.Popen([COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        print(
            f"killed after {moment:.0f} s, with {[p.name for p in sorted(run_dir.glob('[1-6]_*'))]} done; ended before: {process.poll() is not None}",
            flush=True,
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert domain_embed(*command).returncode == 0
        for stage in STAGES[:5]:
            found, expected = read_manifest(run_dir, stage), read_manifest(tiny_run[0], stage)
            assert found["metrics"] == expected["metrics"], stage
            assert found["outputs"] == expected["outputs"], stage
        shutil.rmtree(run_dir)


def test_tensorrt_plans_the_graph(tiny_run, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    from domain_embed.tensorrt_export import build_engine

    plan = build_engine(trt, tiny_run[0] / "5_export/onnx/model.onnx", tmp_path / "model.plan", max_length=64)
    assert plan.stat().st_size > 10_000_000
