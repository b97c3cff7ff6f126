"""Exported steps beside eager ones: time, error, memory, start and size.

    python benchmarks/embed.py steps                        the embedded model, 128 px
    python benchmarks/embed.py steps --full --side 256      Stable Diffusion v1's width
    python benchmarks/embed.py programs --build build       the programs of examples/cpp
    python benchmarks/embed.py report                       the tables of docs/embedding.md

`steps` exports the model, and times the guided step, the controlled step and the iteration by each
provider in turns, with every number of threads that is asked for. `--busy` does it once more beside
a process that keeps a core busy, `--compiled` adds torch.compile, which takes minutes for a
function and number of threads. The memory is the peak of a process that calls one function alone.
`programs` inverts and edits a sample from file to file, without Python and with it.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import nti
from cases import random_model
from embed_programs import embed_model, programs
from nti.config import SD_V1
from nti.export.export import export
from nti.export.exported import Exported, load_exported
from nti.export.functions import Function, functions_of
from nti.export.manifest import read_manifest
from nti.model import StableDiffusion
from nti.networks.control import AttentionControl, Fold
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import AdamState, IterationInputs
from rows import Row, make_row, read_rows, write_rows
from timing import busy_core, child_peak_mib, interleaved, resident_peak_mib

TIMED = ("guided", "controlled", "iteration")

Outputs = Sequence[Tensor]
Call = Callable[[], Outputs]


def by_steps(model: StableDiffusion, name: str, inputs: Sequence[Tensor]) -> Outputs:
    """Call a model's own step with a function's inputs; the output that is compared comes first."""
    steps = model.steps
    if name == "guided":
        *given, of_latent, of_eps, w = inputs
        return (steps.guided_step(*given, StepCoefficients(of_latent, of_eps), w),)
    if name == "controlled":
        latent, timestep, context, source_mix, own_mix, source_rows, self_rows, words = inputs
        control = AttentionControl(Fold(source_rows, source_mix, own_mix), self_rows, words)
        return (steps.controlled_noise(latent, timestep, context, control)[0],)
    uncond, mean, square, count, active, latent, timestep, eps_cond, target, a, b, w, rate = inputs
    made = steps.null_text_iteration(
        IterationInputs(
            uncond, AdamState(mean, square, count), active, latent, timestep, eps_cond, target,
            StepCoefficients(a, b), w, rate,
        )
    )  # fmt: skip
    return (made.uncond,)


def openvino_calls(folder: Path, functions: Sequence[Function], threads: int) -> dict[str, Call]:
    """Return the forward functions by OpenVINO, which computes the iteration's gradient wrong."""
    import openvino

    core, calls = openvino.Core(), {}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    for function in functions:
        if function.name == "iteration":
            continue
        compiled = core.compile_model(str(folder / f"{function.name}.onnx"), "CPU", settings)
        given = [x.numpy() for x in function.inputs.values()]
        calls[function.name] = lambda run=compiled, given=given: [
            torch.from_numpy(x) for x in list(run(given).values())
        ]
    return calls


def steps(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Yield the rows of each number of threads."""
    model = embed_model(options.full)
    side = options.side or model.config.image_size
    formats = options.format
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        folder = Path(place) / "export"
        started = time.perf_counter()
        manifest = export(model, folder, size=side, formats=formats, only=options.only)
        seconds = time.perf_counter() - started
        size = sum(each["bytes"] for each in manifest.files.values()) / 2**20
        weights = manifest.files["weights.safetensors"]["bytes"] / 2**20
        where = f"{model.config.name}, {side} px"
        what = "3 functions" if len(options.only) == len(TIMED) else " and ".join(options.only)
        yield [
            make_row(
                "embed", "+".join(formats), f"export of {what}, {where}",
                milliseconds=[1e3 * seconds], quality=size, unit="MiB on disk",
            ),
            make_row("embed", "all", f"weights, {where}", quality=weights, unit="MiB on disk"),
        ]  # fmt: skip
        functions = [
            each for each in functions_of(model, (side, side), 1, 1) if each.name in options.only
        ]
        fast = model.with_execution("compiled") if options.compiled else None
        for threads in options.threads:
            torch.set_num_threads(threads)
            rows, exported = [], {}
            for each in formats:
                started = time.perf_counter()
                exported[each] = load_exported(folder, each, threads=threads)
                for function in functions:
                    exported[each](function.name, *function.inputs.values())
                seconds = time.perf_counter() - started
                case = f"load {what} and call once, {where}, {threads} threads"
                rows.append(make_row("embed", each, case, milliseconds=[1e3 * seconds]))
            other = (
                openvino_calls(folder, functions, threads)
                if "onnx" in formats and options.openvino
                else {}
            )
            for busy in (False, True) if options.busy else (False,):
                with busy_core(busy):
                    for function in functions:
                        rows += timed(
                            model, fast, function, exported, other, options.repeats,
                            f"{where}, {threads} threads{', busy' if busy else ''}",
                        )  # fmt: skip
            yield rows
        names = [each.name for each in functions]
        del model, fast, functions, exported, other  # a graph of onnxruntime may need the room
        yield memory(options, folder, names, where)


def timed(
    model: StableDiffusion,
    fast: StableDiffusion | None,
    function: Function,
    exported: Mapping[str, Exported],
    other: Mapping[str, Call],
    repeats: int,
    where: str,
) -> list[Row]:
    """Time one function by all providers in turns; the error is that against the reference."""
    inputs = list(function.inputs.values())
    providers: dict[str, Call] = {"eager": lambda: by_steps(model, function.name, inputs)}
    if fast is not None:
        providers["torch.compile"] = lambda: by_steps(fast, function.name, inputs)
    for name, folder in exported.items():
        providers[name] = lambda run=folder: run(function.name, *inputs)
    if function.name in other:
        providers["openvino"] = other[function.name]
    with torch.no_grad():
        expected = function.module(*inputs)[0]
        errors = {
            name: float((call()[0] - expected).abs().max() / expected.abs().max())
            for name, call in providers.items()
        }
        times = interleaved(providers, repeats)
    return [
        make_row(
            "embed",
            name,
            f"{function.name}, {where}",
            milliseconds=each,
            quality=errors[name],
            unit="relative error",
        )
        for name, each in times.items()
    ]


def memory(
    options: argparse.Namespace, folder: Path, names: Sequence[str], where: str
) -> list[Row]:
    """Return the peak of a process for each function and provider, and what it imports."""
    rows = []
    for name in names:
        for provider in ("eager", *options.format):
            place = folder.with_name(f"{provider}-{name}")
            place.mkdir()
            for path in folder.iterdir():
                (place / path.name).symlink_to(path.resolve())
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["functions"] = {name: manifest["functions"][name]}
            (place / "manifest.json").unlink()
            (place / "manifest.json").write_text(json.dumps(manifest))
            asked = ["one", "--provider", provider, "--folder", str(place)]
            asked += ["--full"] if options.full else []
            base, peak = child_peak_mib(asked, "embed.py")
            rows.append(
                make_row(
                    "embed", provider, f"memory of {name}, {where}", peak_mib=peak,
                    imports_mib=base,
                )
            )  # fmt: skip
    return rows


def one(options: argparse.Namespace) -> None:
    """Call the one function of a folder twice, and print MiB before and at the peak."""
    base = resident_peak_mib()
    ((name, entry),) = read_manifest(options.folder).functions.items()
    inputs = [
        torch.randn(port.shape) if port.dtype == "float32"
        else torch.ones(port.shape, dtype=getattr(torch, port.dtype))
        for port in entry.inputs
    ]  # fmt: skip
    if options.provider == "eager":
        model = (
            random_model(SD_V1, torch.float32, torch.device("cpu"))
            if options.full
            else nti.load_model()
        )
        call: Call = partial(by_steps, model, name, inputs)
    else:
        call = partial(load_exported(options.folder, options.provider), name, *inputs)
    for _ in range(2):
        call()
    print(base, resident_peak_mib())


def report(path: Path, page: Path) -> None:
    """Write the rows' tables between the page's marks: a line a case, a column a provider."""
    rows = read_rows(path)
    text = page.read_text("utf-8")
    for name, wanted in PLACES.items():
        some = [row for row in rows if wanted in row.case]
        machines = dict.fromkeys(_machine(row) for row in some)
        lines = ["Not measured yet."] if not some else []
        for each in machines:
            lines += table([row for row in some if _machine(row) == each], each)
        place = re.compile(rf"(<!-- embed: {name} -->\n).*?(<!-- /embed -->)", re.DOTALL)
        text = place.sub(lambda m, lines=lines: f"{m[1]}{chr(10).join(lines)}\n{m[2]}", text)
    page.write_text(text, "utf-8")


PLACES = {
    "steps": " threads", "memory": "memory of", "programs": "from file to file", "start": "start,"
}  # fmt: skip
"""The places of the page, and what the cases of their rows hold."""


def _machine(row: Row) -> str:
    """Return the processor's name; how many threads a row had is in its case."""
    return row.device.rpartition(",")[0]


def table(rows: Sequence[Row], machine: str) -> list[str]:
    """Lay out the rows of one machine."""
    providers = list(dict.fromkeys(row.provider for row in rows))
    providers.sort(key=lambda name: name != "eager")
    lines = [f"| {machine} | {' | '.join(providers)} |", f"|---|{'---:|' * len(providers)}"]
    for case in dict.fromkeys(row.case for row in rows):
        found = {row.provider: row for row in rows if row.case == case}
        cells = [cell(found[each]) if each in found else "" for each in providers]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    versions, commits = ({getattr(row, name) for row in rows} for name in ("torch", "commit"))
    what = f"torch {', '.join(sorted(versions))}, commit {', '.join(sorted(commits))}"
    return [*lines, "", f"{what}.", ""]


def cell(row: Row) -> str:
    """Return the median, with memory or size where that was measured."""
    facts = [f"{row.peak_mib:.0f} MiB"] if row.peak_mib else []
    facts += [f"{row.quality:.0f} {row.unit}"] if row.unit == "MiB on disk" else []
    return ", ".join([*([f"{row.p50_ms:.1f}"] if row.p50_ms else []), *facts])


def main() -> None:
    """Measure what is asked for, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["steps", "programs", "report", "one"])
    parser.add_argument("--full", action="store_true", help="SD v1's width, random weights")
    parser.add_argument("--side", type=int, help="pixels (default: the model's)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--format", nargs="+", default=["aoti", "onnx"], choices=["aoti", "onnx"])
    parser.add_argument("--only", nargs="+", default=TIMED, choices=TIMED, help="functions")
    parser.add_argument("--openvino", action="store_true", help="time it, too, where installed")
    parser.add_argument(
        "--busy", action="store_true", help="beside a process that keeps a core, too"
    )
    parser.add_argument("--compiled", action="store_true", help="time torch.compile, too")
    parser.add_argument("--provider", help="of `one`, by which `steps` measures memory")
    parser.add_argument("--folder", type=Path, help="of `one`")
    parser.add_argument("--build", type=Path, help="the folder with the programs")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--work", type=Path, help="where the export lies meanwhile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.what == "programs" and options.build is None:
        parser.error("programs: needs --build FOLDER")
    if options.what == "one":
        one(options)
        return
    if options.what == "report":
        report(options.out / "embed.csv", Path("docs/embedding.md"))
        return
    for rows in (steps if options.what == "steps" else programs)(options):
        for row in rows:
            print(
                f"{row.provider:<12} {row.case:<60} {row.p50_ms:>10.1f} ms"
                f" {row.peak_mib:>8.0f} MiB  {row.quality:g} {row.unit}",
                flush=True,
            )
        write_rows(rows, options.out / "embed.csv")


if __name__ == "__main__":
    main()
