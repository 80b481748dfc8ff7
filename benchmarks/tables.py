"""Each table of README.md and docs/performance.md, in Markdown, from one results file.

Above a table stands what it was measured on and the command that measures it again.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any

import method_table
from machine import results_path

Results = dict[str, Any]
MODELS = {
    "embedded": "embedded, float32",
    "qwen2.5-0.5b-shapes": "Qwen2.5-0.5B's shapes, bfloat16",
    "half-billion": "Qwen2.5-0.5B's shapes, bfloat16",
}


def smoke(file: str) -> str:
    """Tokens per second of base, one adapter and 32 adapters."""
    found = results(file)
    rows = []
    for model in found["models"]:
        for mix in model["mixes"]:
            name = in_dtype(model) if mix is model["mixes"][0] else ""
            speed = f"{mix['tokens_per_second']:,.0f}"
            shares = (f"{mix[key]:.2f}" for key in ("to_base", "floor_to_base"))
            to_peft = f"{mix['to_peft']:.1f}x" if "to_peft" in mix else "–"
            rows.append((name, mix["mix"], speed, *shares, to_peft))
    head = ("base", "|mix", "tokens/s", "to base", "the floor's", "to peft's groups")
    return table(f"python benchmarks/smoke.py --threads {found['threads']}", found, head, rows)


def startup() -> str:
    """Seconds to the first token, beside importing and reading."""
    found = results("startup")
    rows = [
        (
            in_dtype({"model": name, **sides}),
            f"{median(sides['first_token']):.1f}",
            f"{median(sides['floor']):.1f}",
            f"{sides['ratio']:.2f}",
        )
        for name, sides in found.items()
        if name != "machine"
    ]
    head = ("base", "first token (s)", "floor (s)", "to the floor")
    return table("python benchmarks/startup.py", found, head, rows)


def loads() -> str:
    """Times between tokens while versions are loaded, to the quiet ones."""
    rows = []
    for file in ("loads", "loads-half-billion-bfloat16", "loads-half-billion-float32"):
        found = results(file)
        beside, cold = found["beside"], found["cold"]
        ratios = (f"{beside[key]:.2f}" for key in ("ratio_p50", "ratio_p99"))
        steps = f"{cold['steps_beyond_load_p50']:.1f}"
        rows.append((in_dtype(found), found["machine"]["date"], *ratios, steps))
    columns = ("p50 to quiet", "p99 to quiet", "first token of a cold adapter, in steps")
    head = ("base", "|on", *columns)
    return table("python benchmarks/loads.py --core 1", results("loads"), head, rows)


def serving(file: str, workloads: str) -> str:
    """Rates and latencies of each workload, and of its kinds of requests."""
    found = results(file)
    rows = []
    for name, run in found["runs"].items():
        rates = f"{run['requests_per_second']:.1f}", f"{run['tokens_per_second']:,.0f}"
        floor = f"{1e3 * run['floor_step_seconds']:.1f}"
        rows.append((name, run["sent"], *rates, *latencies(run), floor, f"{run['kept']:.0%}"))
        for kind, part in run["kinds"].items():
            rows.append(("", kind, "", "", *latencies(part), "", f"{part['kept']:.0%}"))
    load, promise = found["load"], found["promise"]
    options = {
        "--rate": load["rate"],
        "--seconds": load["seconds"],
        "--slo-first-token": promise["first_token"],
        "--slo-inter-token": promise["inter_token"],
    }
    words = " ".join(f"{flag} {value:g}" for flag, value in options.items())
    columns = "requests/s", "tokens/s", "first token (ms)", "between tokens (ms)", "floor (ms)"
    head = ("workload", "|sent", *columns, "in time")
    command = f'python benchmarks/serving --workloads "{workloads}" {words}'
    return table(command, found, head, rows)


def registered() -> str:
    """What all the registered adapters cost those in use, and who lists them."""
    found = results("registered")
    ratios = "1", "{median:.2f} ({lower:.2f} to {upper:.2f})".format(**found["ratio"])
    rows = [
        (
            name,
            f"{side['tokens_per_second']:,.0f}",
            ratio,
            f"{1e3 * side['first_token_p50']:.0f}",
            f"{1e3 * side['inter_token_p50']:.0f}",
            *(f"{1e3 * seconds:.0f}" for seconds in side["seconds_of"].values()),
            f"{side['server_memory_bytes'] / 2**20:.0f}",
        )
        for (name, side), ratio in zip(found["sides"].items(), ratios, strict=True)
    ]
    head = (
        "server",
        "tokens/s",
        "throughput, ratio",
        "first token (ms)",
        "between tokens (ms)",
        "`/metrics` (ms)",
        "`/v1/models` (ms)",
        "memory (MiB)",
    )
    return table("python benchmarks/registered.py", found, head, rows)


def swap_in() -> str:
    """An adapter's way to the device, and what adapters take there."""
    found = results("swap_in")
    rows = []
    for where in ("in one range", "in holes"):
        one = found[where]
        times = (f"{1e3 * one[what]:.1f}" for what in ("copy", "swap_in"))
        ratio = f"{one['ratio']:.2f} ({one['spread'][0]:.2f} to {one['spread'][1]:.2f})"
        rows.append((f"{found['bytes'] / 1e6:.0f} MB, {where}", *times, ratio))
    ratio = f"{found['mixed ranks']['ratio']:.3f}"
    rows.append(("pool bytes to adapter bytes, ranks 4 to 64", "", "", ratio))
    head = ("", "one copy (ms)", "swap-in (ms)", "ratio")
    return table("python benchmarks/swap_in.py", found, head, rows)


def engine() -> str:
    """Steps of one and of the most rows that decode, beside their floors."""
    found = results("engine")
    rows = []
    for model in found["models"].values():
        threads = str(model["machine"]["torch_threads"])
        name = in_dtype(model)
        most = max(case["rows"] for case in model["cases"])
        for case in model["cases"]:
            wanted = case["rows"] in (1, most) and case["adapters"] in (0, 1, most)
            if not wanted or case["ranks"] not in ([], [16]):
                continue
            idle = case.get("idle_to_bare")
            rows.append(
                (
                    *(name, threads, str(case["rows"]), str(case["adapters"])),
                    f"{1e3 * case['step']:,.1f}",
                    *(f"{case['step'] / case[floor]:.2f}" for floor in ("floor", "products")),
                    *(f"{case[key]:.2f}" for key in ("to_base", "floor_to_base")),
                    *(f"{case['own']:.1%}", "" if idle is None else f"{idle:.3f}"),
                )
            )
            name = threads = ""
    floors = "to bytes", "to products", "to base", "the floor's"
    head = ("base", "threads", "rows", "adapters", "step (ms)", *floors, "own", "idle to bare")
    machine = found["machine"] | {"torch_threads": None}
    told = conditions("python benchmarks/engine.py --ranks 16", machine)
    return f"{told}\n\n{markdown(head, rows)}"


def compiled() -> str:
    """Steps of a compiled base beside those of a plain one, and what it costs the start."""
    found = results("compiled")
    rows = []
    for title, model in found["models"].items():
        name = in_dtype({"model": title.partition(",")[0], **model})
        threads, starts = str(model["threads"]), model["start_seconds"]
        start = f"+{starts['compiled'] - starts['plain']:.0f}"
        for adapter in (False, True):
            cases = [case for case in model["cases"] if case["adapter"] is adapter]
            ratios = (f"{case['ratio']:.2f}" for case in cases)
            kind = "a LoRA in each row" if adapter else "base"
            rows.append((name, threads, kind, *ratios, start))
            name = threads = start = ""
    counts = (f"{case['rows']} row{'s' * (case['rows'] > 1)}" for case in cases)
    head = ("base", "threads", "|step", *counts, "start (s)")
    machine = found["machine"] | {"torch_threads": None}
    told = conditions("python benchmarks/compiled.py", machine)
    return f"{told}\n\n{markdown(head, rows)}"


def kernels(file: str, dtype: str, options: str) -> str:
    """One linear map's additions and attention, in one dtype."""
    found = results(file)
    bandwidth, peak = found["bandwidth"], found["matmul_peak"][dtype]
    rows = []
    for case in found["cases"]:
        shown = case["case"].startswith("hidden → inner") or case["kernel"].startswith("attention")
        if case["dtype"] == dtype and shown:
            seconds = case["seconds"]
            moved, computed = (case[what] / seconds["weft"] for what in ("bytes", "flops"))
            rows.append(
                (
                    case["kernel"].replace("_", " "),
                    case["case"].removeprefix("hidden → inner, "),
                    f"{1e6 * seconds['weft']:,.0f}",
                    f"{1e6 * case['floor_seconds']:,.0f}",
                    f"{moved / 1e9:.1f} ({moved / bandwidth:.0%})",
                    f"{computed / 1e9:.1f} ({computed / peak:.0%})",
                    *(
                        f"{seconds[way] / seconds['weft']:.1f}x" if way in seconds else "–"
                        for way in ("gather", "peft")
                    ),
                )
            )
    columns = "us", "floor (us)", "GB/s", "GFLOP/s", "to gather + bmm", "to peft's way"
    command = f"python benchmarks/kernel_speed.py{options}"
    return table(command, found, ("kernel", "|problem", *columns), rows)


def rivals(file: str, options: str) -> str:
    """Tokens per second of weft and others, by mix: median, and least to most."""
    found = results(file)

    def cell(mix: Results) -> str:
        if "not_served" in mix:
            return "–"
        if mix["failed"]:
            return f"not in {found['deadline']:.0f} s"
        least, most = min(mix["runs"]), max(mix["runs"])
        return f"{mix['tokens_per_second']:.0f} ({least:.0f} to {most:.0f})"

    rows = [(side["side"], *map(cell, side["mixes"].values())) for side in found["sides"]]
    floors = found["floor_tokens_per_second"]
    rows.append(("the floor allows", *(f"{floor:.0f}" for floor in floors.values())))
    repeats, long = (found["rules"][key] for key in ("repeats", "long"))
    command = f"python benchmarks/rivals.py --vllm PYTHON --repeats {repeats} --long {long:g}"
    return table(command + options, found, ("tokens/s", *floors), rows)


def methods() -> str:
    """What serves each method, how exactly, what an adapter takes, and what a step costs."""
    fidelity, found = results("fidelity"), results("methods")
    rows = [method_table.cells(row, fidelity, found) for row in method_table.ROWS]
    commands = "`make fidelity`, `python benchmarks/methods.py --models half-billion`"
    told = f"{commands}; 1 torch thread; {method_table.measured_on(found)}:"
    mixes = f"A row or two of each family in one step: {', '.join(method_table.mixes(found))}."
    return f"{told}\n\n{markdown(method_table.HEAD, rows)}\n\n{mixes}"


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "smoke": partial(smoke, "smoke"),
    "smoke_float32": partial(smoke, "smoke-float32"),
    "rivals": partial(rivals, "rivals", ""),
    "rivals_float32": partial(
        rivals, "rivals-float32", " --dtype float32 --sides vllm,llama.cpp,weft"
    ),
    "startup": startup,
    "loads": loads,
    "serving": partial(serving, "serving", "s-lora*;cold;prefix*"),
    "punica": partial(serving, "serving-punica", "punica*"),
    "registered": registered,
    "swap_in": swap_in,
    "engine": engine,
    "compiled": compiled,
    "kernels": partial(kernels, "kernels", "bfloat16", ""),
    "kernels_float32": partial(kernels, "kernels-float32", "float32", " --dtypes float32"),
}


def in_dtype(model: Results) -> str:
    """What a base is called, with the dtype that it was served in."""
    return f"{MODELS[model['model']].partition(', ')[0]}, {model['dtype']}"


def latencies(run: Results) -> tuple[str, str]:
    """To the first token and between tokens: median and 99th percentile, in milliseconds."""
    first, between = (
        " / ".join(f"{1e3 * run[key][p]:,.0f}" for p in ("p50", "p99"))
        for key in ("first_token", "inter_token")
    )
    return first, between


def results(name: str) -> Results:
    """What a results file holds."""
    found: Results = json.loads(results_path(name).read_text())
    return found


def table(command: str, found: Results, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The conditions in a line, then a table."""
    return f"{conditions(command, found['machine'])}\n\n{markdown(head, rows)}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text begin with "|" or come first."""
    text = [number == 0 or name.startswith("|") for number, name in enumerate(head)]
    lines = [
        tuple(name.removeprefix("|") for name in head),
        tuple("---" if left else "--:" for left in text),
        *rows,
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(command: str, machine: Results) -> str:
    """The command, and on what it ran when."""
    threads = machine["torch_threads"]
    device = machine["gpu"] or f"{machine['cores']} cores of an {_processor(machine)}"
    torch = machine["packages"]["torch"]
    cpu = "" if machine["gpu"] or not threads else f", {threads} torch thread{'s' * (threads > 1)}"
    return f"`{command}`, {machine['date']}, {device}{cpu}, torch {torch}:"


def _processor(machine: Results) -> str:
    """With its vectors, where the file has them: AVX2 or AVX512 decides what bfloat16 costs."""
    simd = machine.get("simd")
    return f"{machine['processor']} ({simd})" if simd else str(machine["processor"])
