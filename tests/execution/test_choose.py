"""Who computes and how: what was asked for, or the best that passes its check."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nti.kernels import self_check

import nti
from graph_stand_in import capture
from nti.execution import choose
from nti.execution.choose import choose_backend, choose_execution, graph_failure
from nti.execution.eager import eager_steps
from nti.networks.unet import UNet
from tiny import TINY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Checks are remembered for the process."""
    graph_failure.cache_clear()
    self_check.failures.cache_clear()
    yield
    graph_failure.cache_clear()
    self_check.failures.cache_clear()


def steps() -> Any:
    return eager_steps(UNet(TINY.unet).requires_grad_(False))


def stale(function: Callable[..., Any], arguments: tuple[Any, ...], pool: object) -> Any:
    """A capture whose replay does nothing: results stay those of the first call."""
    return lambda: None, function(*arguments)


def broken(*_: Any) -> Any:
    raise RuntimeError("no such instruction")


def test_auto_is_eager_on_a_cpu() -> None:
    assert choose_execution(steps(), "auto").execution == "eager"


@pytest.mark.parametrize("execution", ["auto", "cuda-graph"])
def test_graphs_that_agree_are_chosen(execution: str) -> None:
    assert choose_execution(steps(), execution, capture=capture).execution == "cuda-graph"


@pytest.mark.parametrize(
    ("by", "found"),
    [(stale, r"a relative error of \d"), (broken, "RuntimeError: no such instruction")],
)
def test_graphs_that_fail_their_check_are_named_and_not_used(by: Any, found: str) -> None:
    with pytest.warns(UserWarning, match=f"fails its self-check .{found}"):
        assert choose_execution(steps(), "auto", capture=by).execution == "eager"
    with pytest.raises(ValueError, match=f"self-check .{found}.*choose execution='eager'"):
        choose_execution(steps(), "cuda-graph", capture=by)


def test_a_check_is_made_once_in_a_process() -> None:
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return capture(*given)

    for _ in range(3):
        choose_execution(steps(), "auto", capture=counted)
    assert len(calls) == 2, "the beginning and the iteration"


def test_inference_mode_of_the_caller_is_no_obstacle() -> None:
    with torch.inference_mode():
        assert choose_execution(steps(), "cuda-graph", capture=capture).execution == "cuda-graph"
        found = self_check.failures("triton", CPU, torch.float32)
    assert not [each for each in found if "nference" in each]


def test_a_check_leaves_random_numbers_alone() -> None:
    given = steps()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    choose_execution(given, "auto", capture=capture)
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ValueError, match="execution: got 'fast', expected one of auto, eager"):
        choose_execution(steps(), "fast")


def test_a_backend_that_fails_its_check_is_named_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "resolve_backend", lambda *_: "triton")
    monkeypatch.setattr(choose, "failures", lambda *_: ("GEGLU: a relative error of 0.7",))
    with pytest.warns(UserWarning, match="triton on cpu .* fails its self-check .GEGLU"):
        assert choose_backend("auto", CPU, torch.float16) == "reference"
    with pytest.raises(ValueError, match="GEGLU: a relative error of 0.7.*backend='reference'"):
        choose_backend("triton", CPU, torch.float16)
    monkeypatch.setattr(choose, "failures", lambda *_: ())
    assert choose_backend("auto", CPU, torch.float16) == "triton"


def test_every_check_finds_an_op_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the reference, with its ops twice as large for the backend that is checked."""
    for op in ("cfg_attention", "group_norm", "geglu"):
        plain = getattr(self_check, op)

        def doubled(
            *given: Any, backend: str = "reference", plain: Any = plain, **rest: Any
        ) -> Any:
            made = plain(*given, **rest)
            factor = 1.0 if backend == "reference" else 2.0
            return tuple(factor * x for x in made) if isinstance(made, tuple) else factor * made

        monkeypatch.setattr(self_check, op, doubled)
    names = [name for checks in self_check.CHECKS.values() for name in checks]
    found = self_check.failures("triton", CPU, torch.float32)
    assert [each.split(":")[0] for each in found] == names


def test_a_check_that_cannot_run_is_a_failure() -> None:
    found = self_check.failures("triton", CPU, torch.float32)
    assert len(found) == 3 and all("ValueError: device: got 'cpu'" in each for each in found)


@pytest.mark.parametrize("device", ["cuda:7", "cuda", "warp", "mps"])
def test_a_device_that_is_not_there_is_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    listed = "cpu, cuda, cuda:0, cuda:1" if device == "cuda:7" else "cpu"
    with pytest.raises(ValueError, match=f"device: got '{device}', expected one of {listed}$"):
        nti.load_model(device=device)
