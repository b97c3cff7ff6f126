"""What the Triton attention must do, as functions of a device: run on CUDA where there is one, and
on the CPU by `interpreter_worker.py`, in a process of its own.
"""

from collections.abc import Callable

import torch
from nti.kernels.cfg_attention import Fold, cfg_attention
from nti.kernels.cfg_attention_triton import cfg_attention_forward
from torch import Tensor

from checks import (
    DTYPES,
    Watch,
    normal,
    poisoned_memory,
    refusal,
)
from nti.config import UNetConfig
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionControl, Site
from nti.networks.unet import UNet
from tolerances import FORWARD_FACTOR, assert_as_exact_as_torch, assert_close

TOKENS = 77


def heads_last(x: Tensor) -> Tensor:
    """As attention gets them: (B, L, heads, d) in memory, (B, heads, L, d) to look at."""
    return x.transpose(1, 2)


def check_fold(device: str, name: str, dtype: str, head: int, length: int, columns: int) -> None:
    """One launch of a batch uncond, cond, edit: both outputs, words of the last two rows."""
    heads = 1 if head > 128 else 2
    draw = normal(name, DTYPES[dtype], device)
    inputs = [heads_last(draw(3, n, heads, head)) for n in (length, TOKENS, TOKENS)]
    fold = Fold(torch.tensor([1], device=device), draw(1, TOKENS, TOKENS), draw(1, TOKENS))
    words = (draw(2, TOKENS, columns) > 1).to(torch.float32)
    with poisoned_memory():
        ours = cfg_attention(*inputs, fold, words, backend="triton")
    torchs = cfg_attention(*inputs, fold, words)
    exact_fold = Fold(fold.source_rows, fold.source_mix.double(), fold.own_mix.double())
    exact = cfg_attention(*(x.double() for x in inputs), exact_fold, words)
    for part, a, b, c in zip(("out", "maps"), ours, torchs, exact, strict=True):
        assert a is not None and b is not None and c is not None
        assert_as_exact_as_torch(a, b, c, FORWARD_FACTOR, part)


def check_any_layout(device: str) -> None:
    """Inputs whose memory is laid out in another order."""
    draw = normal("layout", torch.float32, device)
    q, k, v = (draw(2, 2, n, 16) for n in (20, TOKENS, TOKENS))
    fold = Fold(torch.tensor([0], device=device), draw(1, TOKENS, TOKENS), draw(1, TOKENS))
    ours, _ = cfg_attention(q, k, v.mT.contiguous().mT, fold, backend="triton")
    assert_close(ours, cfg_attention(q, k, v, fold)[0])


def check_rows_of_any_layout(device: str) -> None:
    """Row numbers that lie apart in memory."""
    draw = normal("rows", torch.float32, device)
    q, k, v = (draw(3, 2, n, 16) for n in (20, TOKENS, TOKENS))
    mix, own = draw(2, TOKENS, TOKENS), draw(2, TOKENS)
    apart = torch.tensor([0, 9, 1, 9, 0, 9], device=device)[::2]
    fold = Fold(apart[:2], mix, own)
    edited, _ = cfg_attention(q, k, v, fold, backend="triton")
    assert_close(edited, cfg_attention(q, k, v, fold)[0])


def check_one_row_repeats(device: str) -> None:
    """The same bits from every run, and from a row whatever rows are beside it."""
    draw = normal("repeat", torch.float16, device)
    q, k, v = (heads_last(draw(2, n, 2, 16)) for n in (100, TOKENS, TOKENS))
    fold = Fold(torch.tensor([0], device=device), draw(1, TOKENS, TOKENS), draw(1, TOKENS))
    words = (draw(1, TOKENS, 1) > 1).to(torch.float32)
    first = cfg_attention(q, k, v, fold, words, backend="triton")
    again = cfg_attention(q, k, v, fold, words, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    described, _ = cfg_attention(q[:1], k[:1], v[:1], None, words, backend="triton")
    assert torch.equal(first[0][:1], described)


def check_opcheck(device: str) -> None:
    """Schema, fake (true strides) and tracing of the op."""
    draw = normal("opcheck", torch.float32, device)
    q, k, v = (heads_last(draw(2, n, 2, 16)) for n in (20, TOKENS, TOKENS))
    rows = torch.tensor([0], device=device)
    fold = (rows, draw(1, TOKENS, TOKENS), draw(1, TOKENS))
    torch.library.opcheck(cfg_attention_forward, (q, k, v, *fold, None))
    torch.library.opcheck(cfg_attention_forward, (q, k, v, *fold, draw(2, TOKENS, 3)))


def check_control_in_one_graph(device: str) -> None:
    """Both attention modules under control, captured once: other rows and another fold are data."""
    torch.manual_seed(0)
    modules = torch.nn.ModuleList(
        [
            SelfAttention(Site("down", 0, 0, "self"), 32, 2, inject=True, backend="triton"),
            CrossAttention(
                Site("down", 0, 0, "cross"), 32, 24, 2, maps_words=True, backend="triton"
            ),
            torch.nn.LayerNorm(32),
        ]
    )
    modules.to(device).requires_grad_(False)
    draw = normal("graph", torch.float32, device)
    x, context = draw(3, 20, 32), draw(3, TOKENS, 24)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def run(control: AttentionControl) -> tuple[Tensor, Tensor]:
        norm = modules[2]
        out, maps = modules[1](modules[0](x, norm, control), norm, context, control)
        return out, maps

    compiled = torch.compile(run, fullgraph=True, backend=count)
    for step in (0, 1):
        control = small_control(step, device)
        for a, b in zip(compiled(control), run(control), strict=True):
            assert torch.equal(a, b)
    assert len(graphs) == 1


def small_unet(device: str) -> UNet:
    """A frozen UNet of one level."""
    config = UNetConfig(
        latent_channels=4,
        channels=16,
        channel_multipliers=(1,),
        res_blocks=1,
        attention_levels=(0,),
        heads=2,
        context_dim=24,
        norm_groups=8,
        self_injection_level=0,
        word_map_level=0,
    )
    torch.manual_seed(0)
    return UNet(config).to(device).requires_grad_(False)


def check_unet(device: str) -> None:
    """The whole UNet, with control and words, then its gradient to the context without."""
    unet = small_unet(device)
    draw = normal("unet", torch.float32, device)
    latent, context = draw(3, 4, 4, 4), draw(3, TOKENS, 24)
    time = torch.full((3,), 5, device=device)
    results = {}
    for backend in ("reference", "triton"):
        by = unet.with_backend(backend)
        eps, maps = by(latent, time, context, small_control(1, device))
        _, pull = torch.func.vjp(lambda c, by=by: by(latent[:1], time[:1], c)[0], context[:1])
        results[backend] = eps, maps, pull(latent[:1])[0]
    for ours, reference in zip(results["triton"], results["reference"], strict=True):
        assert_close(ours, reference)


def check_no_zeros_are_made(device: str) -> None:
    """No launch fills a gradient of zeros to the numbers that layers keep for themselves."""
    unet, draw = small_unet(device).with_backend("triton"), normal("zeros", torch.float32, device)
    latent, context = draw(1, 4, 4, 4), draw(1, TOKENS, 24).requires_grad_()
    eps, _ = unet(latent, torch.full((1,), 5, device=device), context)
    with Watch() as watch:
        torch.autograd.grad(eps, context, latent)
    assert watch.ops.count("nti::group_norm_bwd") > 0
    assert not [name for name in watch.ops if "zeros" in name or "fill" in name]


def small_control(step: int, device: str) -> AttentionControl:
    """Row 2 is an edit of row 1; words of both."""
    draw = normal(f"control {step}", torch.float32, device)
    fold = Fold(
        source_rows=torch.tensor([1], device=device),
        source_mix=draw(1, TOKENS, TOKENS).softmax(dim=-1),
        own_mix=draw(1, TOKENS).sigmoid(),
    )
    return AttentionControl(
        fold,
        self_rows=torch.tensor([0, 1, 1 if step else 2], device=device),
        words=(draw(2, TOKENS, 2) > 1).to(torch.float32),
    )


def check_refusals(device: str) -> None:
    """What the kernels do not do is said, not done by somebody else."""
    draw = normal("refusals", torch.float32, device)
    q, k, wide, long = (
        draw(2, 1, 4, 16), draw(2, 1, TOKENS, 16), draw(1, 1, 4, 264), draw(2, 1, 129, 16),
    )  # fmt: skip
    rows = torch.tensor([0], device=device)
    mix, own = draw(1, TOKENS, TOKENS), draw(1, TOKENS)
    fold = Fold(rows, mix, own)

    def triton(q: Tensor, k: Tensor, v: Tensor) -> None:
        keys = k.shape[2]
        cfg_attention(
            q, k, v, Fold(rows, q.new_zeros(1, keys, keys), q.new_zeros(1, keys)), backend="triton"
        )

    assert "float64" in refusal(lambda: triton(q.double(), q.double(), q.double()))
    assert "one dtype" in refusal(lambda: triton(q, q.half(), q))
    assert "at most 256" in refusal(lambda: triton(wide, wide, wide))
    assert "got 129, expected at most 128" in refusal(lambda: triton(q, long, long))
    assert "(2, 1, 77, 16)" in refusal(lambda: triton(q, k, q))
    for bad in (Fold(rows, mix, own[0]), Fold(rows, mix[:, 1:], own), Fold(rows, mix, own[:, 1:])):
        assert "expected (E,), (E, 77, 77)" in refusal(lambda bad=bad: cfg_attention(q, k, k, bad))
    three = Fold(
        torch.tensor([0, 0, 0], device=device), *(x.expand(3, *x.shape[1:]) for x in (mix, own))
    )
    assert "with E at most 2" in refusal(lambda: cfg_attention(q, k, k, three, backend="triton"))
    for shape in ((3, TOKENS, 1), (0, TOKENS, 1), (1, 76, 1), (TOKENS, 1)):
        words = draw(*shape)
        message = refusal(lambda words=words: cfg_attention(q, k, k, fold, words))
        assert f"words: got {shape}, expected (R, 77, W) with R from 1 to 2" in message
    learns = q.clone().requires_grad_()
    out, _ = cfg_attention(learns, k, k, fold, backend="triton")
    assert "edited or described batch" in refusal(lambda: out.sum().backward())


def _checks() -> dict[str, Callable[[str], None]]:
    """Every check by its id. Sizes are spread over dtypes, not multiplied."""
    checks: dict[str, Callable[[str], None]] = {}

    def add(name: str, check: Callable[..., None], *args: object) -> None:
        checks[name] = (lambda device: check(device, name, *args)) if args else check

    folds = [("f32", 16, 64, 3), ("f32", 40, 100, 1), ("f16", 32, 64, 77), ("f16", 40, 100, 3)]
    folds += [("f16", 80, 64, 17), ("f16", 160, 64, 2), ("bf16", 40, 256, 3), ("bf16", 160, 20, 2)]
    folds += [("f32", 80, 64, 2), ("f32", 160, 64, 1), ("bf16", 80, 100, 2), ("f16", 40, 4096, 2)]
    for dtype, head, length, columns in folds:
        size = f"d{head}-L{length}-W{columns}-{dtype}"
        add(f"fold-{size}", check_fold, dtype, head, length, columns)
    add("any-layout", check_any_layout)
    add("rows-any-layout", check_rows_of_any_layout)
    add("repeats", check_one_row_repeats)
    add("opcheck", check_opcheck)
    add("control-in-one-graph", check_control_in_one_graph)
    add("unet", check_unet)
    add("no-zeros", check_no_zeros_are_made)
    add("refusals", check_refusals)
    return checks


CHECKS = _checks()

ON_CUDA_ALONE = {name for name in CHECKS if "-L4096-" in name} | {"fold-d160-L64-W1-f32"}
"""What the interpreter takes too long for."""
