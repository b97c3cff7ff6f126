"""What GroupNorm, SiLU and GEGLU by Triton must do, as functions of a device: see
`attention_checks`.
"""

import functools
from collections.abc import Callable

import torch
from nti.kernels import group_norm_triton
from nti.kernels.backend import without_fusion
from nti.kernels.geglu import geglu
from nti.kernels.geglu_triton import geglu_backward, geglu_forward
from nti.kernels.group_norm import group_norm
from nti.kernels.group_norm_triton import group_norm_backward, group_norm_forward
from nti.kernels.self_check import failures
from torch import Tensor

from attention_checks import TOKENS, small_unet
from checks import (
    DTYPES,
    Op,
    Watch,
    check_one_graph,
    normal,
    poisoned_memory,
    refusal,
    with_gradients,
)
from nti.execution.compiled import compiles
from nti.networks.layers import FeedForward, GroupNormSiLU
from tolerances import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_exact_as_torch, assert_close

EPS = 1e-5


def last(x: Tensor) -> Tensor:
    """As convolutions leave them."""
    return x.to(memory_format=torch.channels_last)


def compare(op: Op, x: Tensor, cotangent: Tensor, weights: tuple[Tensor, ...] = ()) -> None:
    """Result and gradient by Triton, as exact as PyTorch's in the same dtype."""

    def given(backend: str, *dtype: torch.dtype) -> list[Tensor]:
        bound = functools.partial(op, backend=backend)
        others = [each.to(*dtype) if dtype else each for each in weights]
        start = x.to(*dtype) if dtype else x
        return with_gradients(lambda x: bound(x, *others), [start], cotangent)

    with poisoned_memory():
        ours = given("triton")
    torchs, exact = given("reference"), given("reference", torch.float64)
    factors = FORWARD_FACTOR, GRADIENT_FACTOR
    for name, factor, a, b, c in zip(("out", "d_x"), factors, ours, torchs, exact, strict=True):
        assert_as_exact_as_torch(a, b, c, factor, name)


def check_norm(
    device: str, name: str, dtype: str, size: int, sides: tuple[int, int], silu: bool, lanes: int
) -> None:
    """Two images of three groups, whose mean is five deviations from zero, or thirty in float32."""
    draw = normal(name, DTYPES[dtype], device)
    x = last(draw(2, 3 * size, *sides) + (30 if dtype == "f32" else 5))
    weights = draw(3 * size), draw(3 * size)

    def op(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return group_norm(x, weight, bias, 3, EPS, silu=silu, backend=backend)

    shipped = group_norm_triton.LANES
    group_norm_triton.LANES = lanes or shipped
    try:
        compare(op, x, last(draw(*x.shape)), weights)
    finally:
        group_norm_triton.LANES = shipped


def check_geglu(device: str, name: str, dtype: str, rows: tuple[int, int], width: int) -> None:
    """Gates from far below zero, where GELU vanishes, to far above."""
    draw = normal(name, DTYPES[dtype], device)
    compare(geglu, 3 * draw(*rows, 2 * width), draw(*rows, width))


def check_any_layout(device: str) -> None:
    """Inputs and cotangents whose memory is laid out in another order."""
    draw = normal("layout", torch.float32, device)
    x, weight, bias, cotangent = draw(2, 12, 4, 6), draw(12), draw(12), draw(2, 12, 4, 6)

    def norm(x: Tensor, backend: str = "triton") -> Tensor:
        wide = weight.to(x.dtype), bias.to(x.dtype)
        return group_norm(x, *wide, 3, EPS, silu=True, backend=backend)

    exact = with_gradients(functools.partial(norm, backend="reference"), [x.double()], cotangent)
    turned = x.mT.contiguous().mT
    for given, grad in ((x, last(cotangent)), (last(x), cotangent), (turned, cotangent)):
        with poisoned_memory():
            ours = with_gradients(norm, [given], grad)
        for a, b in zip(ours, exact, strict=True):
            assert_close(a, b.float())
    y, ones = draw(5, 2, 24).transpose(0, 1), torch.ones((), device=device).expand(2, 5, 12)
    exact = with_gradients(geglu, [y.double()], ones)
    with poisoned_memory():
        ours = with_gradients(functools.partial(geglu, backend="triton"), [y], ones)
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b.float())


def check_nothing_is_laid_out_anew(device: str) -> None:
    """What the UNet gives the ops, forward and backward, already lies as they read it."""
    unet = small_unet(device).to(memory_format=torch.channels_last).with_backend("triton")
    draw = normal("anew", torch.float32, device)
    latent, cotangent = last(draw(1, 4, 4, 4)), last(draw(1, 4, 4, 4))
    context = draw(1, TOKENS, 24).requires_grad_()
    with Watch() as watch:
        eps, _ = unet(latent, torch.full((1,), 5, device=device), context)
        torch.autograd.grad(eps, context, cotangent)
    seen = set()
    for op, tensors in watch.given:
        name = op.name()
        maps = [x for x in tensors if x.ndim == 4]
        if "group_norm" in name:
            lies = [x.is_contiguous(memory_format=torch.channels_last) for x in maps]
        elif "geglu" in name:
            lies = [x.is_contiguous() for x in tensors]
        elif name.startswith("nti::"):
            lies = [x.transpose(1, 2).is_contiguous() for x in maps]
        else:
            continue
        seen.add(name)
        assert lies and all(lies), name
    assert len(seen) == 4


def check_one_row_repeats(device: str) -> None:
    """The same bits from every run, and from a row whatever rows are beside it."""
    draw = normal("repeat", torch.float16, device)
    x, weight, bias = last(draw(2, 48, 24, 24)), draw(48), draw(48)
    wide = draw(2, 9, 600)

    def norm(x: Tensor) -> Tensor:
        return group_norm(x, weight, bias, 3, EPS, silu=True, backend="triton")

    gate = functools.partial(geglu, backend="triton")
    for op, given, grad in ((norm, x, x.flip(1)), (gate, wide, wide[..., :300])):
        first = with_gradients(op, [given], grad)
        again = with_gradients(op, [given], grad)
        alone = with_gradients(op, [given[:1]], grad[:1])
        for a, b, c in zip(first, again, alone, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a[:1], c)


def check_opcheck(device: str) -> None:
    """Schemas, fakes (true strides) and tracing of all four ops."""
    draw = normal("opcheck", torch.float32, device)
    x, weight, bias = last(draw(2, 12, 4, 6)), draw(12), draw(12)
    for given in (x, x.contiguous(), x[:1], x[:, :, :1, :1]):
        torch.library.opcheck(group_norm_forward, (given, weight, bias, 3, EPS, True))
    _, stats = group_norm_forward(x, weight, bias, 3, EPS, True)
    torch.library.opcheck(group_norm_backward, (draw(*x.shape), x, weight, bias, stats, True))
    torch.library.opcheck(geglu_forward, (draw(2, 5, 24),))
    torch.library.opcheck(geglu_backward, (draw(2, 5, 12), draw(2, 5, 24)))


def check_vjp_in_one_graph(device: str) -> None:
    """The gradient to an input, through both ops."""
    draw = normal("vjp", torch.float32, device)
    x, weight, bias, cotangent = last(draw(2, 12, 4, 6)), draw(12), draw(12), draw(2, 4, 6, 6)

    def both(x: Tensor) -> Tensor:
        # PyTorch 2.11 traces no op on the very input of a function.
        normed = group_norm(2 * x, weight, bias, 3, EPS, silu=True, backend="triton")
        return geglu(normed.permute(0, 2, 3, 1), backend="triton")

    check_one_graph(both, x, cotangent)


def check_the_compiler_fuses_its_own(device: str) -> None:
    """A graph that is being compiled holds neither op: the compiler fuses PyTorch's."""

    def layers(backend: str) -> torch.nn.ModuleList:
        torch.manual_seed(0)
        norm, gate = GroupNormSiLU(3, 12, eps=EPS, backend=backend), FeedForward(6, backend=backend)
        made = torch.nn.ModuleList([norm, gate, torch.nn.LayerNorm(6)])
        return made.to(device).requires_grad_(False)

    x = last(normal("fuses", torch.float32, device)(2, 12, 4, 6))
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs = [each for each in graph.modules() if isinstance(each, torch.fx.GraphModule)]
        targets.extend(str(node.target) for each in graphs for node in each.graph.nodes)
        return graph.forward

    def run(x: Tensor, layers: torch.nn.ModuleList) -> Tensor:
        out: Tensor = layers[1](layers[0](x).flatten(1, 2), layers[2])
        return out

    triton, fused = layers("triton"), layers(without_fusion("triton"))

    with Watch() as eager:
        expected = run(x, triton)
    assert eager.ops.count("nti::group_norm_fwd") == eager.ops.count("nti::geglu_fwd") == 1
    assert_close(torch.compile(run, fullgraph=True, backend=backend)(x, fused), expected)
    assert any("silu" in name for name in targets)
    assert not [name for name in targets if "_fwd" in name]


def check_the_self_check_passes(device: str, name: str, dtype: str) -> None:
    """What decides whether `auto` uses the kernels finds nothing wrong with them."""
    assert failures("triton", torch.device(device), DTYPES[dtype]) == ()


def check_refusals(device: str) -> None:
    """What the kernels do not do is said, not done by somebody else."""
    draw = normal("refusals", torch.float32, device)
    x, weight = draw(1, 12, 2, 2), draw(12)
    norm = functools.partial(group_norm, weight=weight, bias=weight, eps=EPS, backend="triton")
    assert "float64" in refusal(lambda: norm(x.double(), groups=3))
    assert "(1, 12, 2, 2)" in refusal(lambda: norm(x, groups=5))
    assert "with positions" in refusal(lambda: norm(x[:, :, :0], groups=3))
    assert "weight: got (11,)" in refusal(lambda: norm(x, groups=3, weight=weight[:11]))
    assert "bias: got (12,)" in refusal(lambda: norm(x, groups=3, bias=draw(24)[::2]))
    assert "float64" in refusal(lambda: geglu(x.double(), backend="triton"))
    assert "even number" in refusal(lambda: geglu(draw(2, 5), backend="triton"))


def _checks() -> dict[str, Callable[[str], None]]:
    """Every check by its id."""
    checks: dict[str, Callable[[str], None]] = {}

    def add(name: str, check: Callable[..., None], *args: object) -> None:
        checks[name] = (lambda device: check(device, name, *args)) if args else check

    # Channels of a group, sides, whether SiLU follows, elements of a tile if not as shipped: whole
    # groups in a program, groups divided into equal parts, and with a rest.
    norms = [(10, (8, 8), True, 0), (30, (5, 7), True, 0), (40, (20, 20), True, 0)]
    norms += [(10, (12, 15), True, 512), (4, (6, 6), False, 0), (80, (7, 5), False, 1024)]
    norms += [(16, (1, 1), True, 0)]
    for i, (size, sides, silu, lanes) in enumerate(norms):
        for dtype in DTYPES if i < 4 else ("f16",):
            shape = f"{size}x{sides[0]}x{sides[1]}"
            name = f"norm-{'silu-' * silu}{shape}-{dtype}"
            add(name, check_norm, dtype, size, sides, silu, lanes)
    for dtype in DTYPES:
        add(f"geglu-18x300-{dtype}", check_geglu, dtype, (2, 9), 300)
    add("geglu-1x512-f16", check_geglu, "f16", (1, 1), 512)
    add("layers-any-layout", check_any_layout)
    add("layers-nothing-laid-out-anew", check_nothing_is_laid_out_anew)
    add("layers-repeat", check_one_row_repeats)
    add("layers-opcheck", check_opcheck)
    if compiles():
        add("layers-vjp-in-one-graph", check_vjp_in_one_graph)
    add("layers-in-a-compiled-graph", check_the_compiler_fuses_its_own)
    for dtype in ("f16", "bf16"):
        add(f"layers-self-check-{dtype}", check_the_self_check_passes, dtype)
    add("layers-refusals", check_refusals)
    return checks


CHECKS = _checks()

ON_CUDA_ALONE = {"norm-silu-40x20x20-f32", "norm-silu-40x20x20-bf16"}
"""To the interpreter they are the divided groups of `norm-silu-10x12x15` again."""
