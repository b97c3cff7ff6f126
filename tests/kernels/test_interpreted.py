"""The Triton kernels, interpreted on the CPU, and on CUDA where there is any."""

import json
import os
import subprocess
import sys
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
ALL = pytest.mark.parametrize("check", CHECKS)


@pytest.fixture(scope="session")
def interpreted(request: pytest.FixtureRequest) -> SimpleNamespace:
    """What the worker said of each check that this session selected, and its last words."""
    selected = [
        item.callspec.params["check"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_interpreted"
    ]
    worker = [sys.executable, str(HERE / "interpreter_worker.py"), *selected]
    search = {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    done = subprocess.run(worker, capture_output=True, text=True, env=os.environ | search)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return SimpleNamespace(
        errors={name: error for name, error, _ in lines},
        last_words=f"the worker ended with {done.returncode}\n{done.stderr[-3000:]}",
    )


@pytest.mark.skipif(
    TorchVersion(triton.__version__) < "3.7" and TorchVersion(np.__version__) >= "2.4",
    reason="Triton before 3.7 interprets with NumPy before 2.4 only",
)
@ALL
def test_interpreted(check: str, interpreted: SimpleNamespace) -> None:
    if error := interpreted.errors.get(check, interpreted.last_words):
        pytest.fail(error, pytrace=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@ALL
def test_on_cuda(check: str) -> None:
    CHECKS[check]("cuda")
