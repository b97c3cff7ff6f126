"""The Triton kernels, interpreted on the CPU, and on CUDA where there is any."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

pytest.importorskip("triton")
import triton

import attention_checks
import layer_checks

HERE = Path(__file__).parent
CHECKS = attention_checks.CHECKS | layer_checks.CHECKS
ON_CUDA_ALONE = attention_checks.ON_CUDA_ALONE | layer_checks.ON_CUDA_ALONE
WORKERS = min(4, os.cpu_count() or 1)


def run(checks: list[str]) -> subprocess.CompletedProcess[str]:
    """Have some checks interpreted by a process of their own."""
    worker = [sys.executable, str(HERE / "interpreter_worker.py"), *checks]
    search = {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    return subprocess.run(worker, capture_output=True, text=True, env=os.environ | search)


@pytest.fixture(scope="session")
def interpreted(request: pytest.FixtureRequest) -> SimpleNamespace:
    """What the workers said of each check that this session selected, and their last words."""
    selected = [
        item.callspec.params["check"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_interpreted"
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        done = list(pool.map(run, [selected[i::WORKERS] for i in range(WORKERS)]))
    lines = [json.loads(x) for each in done for x in each.stdout.splitlines() if x.startswith("[")]
    return SimpleNamespace(
        errors={name: error for name, error, _ in lines},
        last_words="\n".join(
            f"a worker ended with {each.returncode}\n{each.stderr[-3000:]}" for each in done
        ),
    )


@pytest.mark.skipif(
    TorchVersion(triton.__version__) < "3.7" and TorchVersion(np.__version__) >= "2.4",
    reason="Triton before 3.7 interprets with NumPy before 2.4 only",
)
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ON_CUDA_ALONE])
def test_interpreted(check: str, interpreted: SimpleNamespace) -> None:
    if error := interpreted.errors.get(check, interpreted.last_words):
        pytest.fail(error, pytrace=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("check", CHECKS)
def test_on_cuda(check: str) -> None:
    CHECKS[check]("cuda")
