"""Mutation tests of the emulated CUDA kernels: each barrier removed, each index shifted by one, one at a time.

    python tests/cuda/mutate.py [--report FILE]

Every mutant is compiled into one library, as a question asked at run time: is this the one? The cases of cases.py then
run once for each, in a process of its own, until one fails; what survives all of them runs again under the address
sanitizer, with more schedules. A mutant is caught when a result is wrong, the sanitizer or the emulator stops it, or it
does not end. What is left is listed with its line: either it changes nothing that anybody could see, and EQUIVALENT
says why, or a test is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import emulation
import torch
from cases import cases as all_cases
from cases import check

ROOT = emulation.ROOT
MUTATED = ROOT / "build" / "cuda_mutants" / "csrc"
SOURCES = (
    "forward.cu",
    "backward.cu",
    "sums.cu",
    "reduce.h",
    "units.h",
    "launch.h",
    "masks.h",
    "types.h",
    "kernels.h",
    "layer_forward.cpp",
    "layer_backward.cpp",
    "call.h",
    "forward_pass.h",
    "products.h",
)
# What steps, rows and units are called in the sources, on the device and on the host.
POSITIONS = {"device": "t|b|j|k|row|next|length", "host": "t|s|row|recurrent_row|chunk_first|first"}
SHIFT = MUTATED.parent / "shift.h"
SHIFT_SOURCE = """
#pragma once
inline int lstm_fused_mutant = 0, lstm_fused_by = 0;
inline int lstm_fused_shift(int site) { return site != 0 && site == lstm_fused_mutant ? lstm_fused_by : 0; }
extern "C" __attribute__((visibility("default"), used)) inline void lstm_fused_mutate(int mutant, int by) {
  lstm_fused_mutant = mutant;
  lstm_fused_by = by;
}
"""
SEEDS = ([0, 1], [1, 2, 3, 4])  # of the schedules, in the first pass and in the second
PATIENCE = 4  # times what the cases take without a mutant, of the processor; and of the clock ten times as much

REPORT = """\
# Mutation tests of the CUDA kernels

`python tests/cuda/mutate.py`: each barrier removed, each index shifted by +1 and by -1, one at a time. Caught is what
makes a case of `tests/cuda/cases.py`, run on the CPU, give another result than the reference, stop or not end.

- {date}, {minutes:.0f} minutes
- {caught} of {tried} caught: {first} by results alone, {second} more with the address sanitizer and more schedules
- {left} not caught, of which {equivalent} change no result

{table}

Not caught:

{survivors}
"""

# Survivors that no test can catch, by file, a part of the line, and the mutant: why not.
SAME_IN_ALL = "every thread of the warp or block has the same value"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    **{
        (
            "forward.cu",
            f"squares[{k}] +=",
            mutant,
        ): "deviations from the mean add up to nothing, whatever they are added up with"
        for k, mutant in ((0, "0 +1"), (1, "1 -1"))
    },
    ("forward.cu", "!step.stats || threadIdx.x != 0", "threadIdx.x -1"): SAME_IN_ALL,
    ("reduce.h", "threadIdx.x % kWarp == 0", "threadIdx.x +1"): SAME_IN_ALL,
    ("reduce.h", "threadIdx.x % kWarp == 0", "threadIdx.x -1"): SAME_IN_ALL,
    ("reduce.h", "warp = threadIdx.x / kWarp", "threadIdx.x +1"): "only the first thread of a warp uses it",
    ("sums.cu", "threadIdx.x % kSumColumns", "threadIdx.x +1"): "the threads of a row change places",
    ("sums.cu", "threadIdx.x % kSumColumns", "threadIdx.x -1"): "the threads of a row change places",
}


@dataclass
class Site:
    file: str
    line: int
    text: str  # the line
    what: str  # the expression that is shifted, or the barrier
    barrier: bool


def matching(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` closes."""
    pairs, depth = {"(": ")", "[": "]", "{": "}", "<": ">"}, 0
    opening, closing = text[start], pairs[text[start]]
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if depth == 0:
            return position
    raise ValueError(f"no end to the bracket in {text[start : start + 60]!r}")


def arguments(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of the arguments of a call whose parenthesis opens at ``start``."""
    end, spans, begin, depth = matching(text, start), [], start + 1, 0
    for position in range(start + 1, end + 1):
        if (text[position] == "," and depth == 0) or position == end:
            spans.append((begin, position))
            begin = position + 1
        depth += (text[position] in "([{") - (text[position] in ")]}")
    return spans


def blank(text: str) -> str:
    """The same length, without comments, macros and strings."""
    pattern = r"//[^\n]*|^[ \t]*#(?:[^\n\\]|\\\n)*|\"[^\"\n]*\""
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match.group()), text, flags=re.MULTILINE)


def end_of(text: str, start: int, stops: str) -> int:
    """Where an expression ends: at one of these characters, or where a bracket that was open before closes."""
    position = start
    while text[position] not in stops and text[position] not in ")]}":
        position = 1 + (matching(text, position) if text[position] in "([{" else position)
    return len(text[:position].rstrip())


def indices(code: str, host: bool) -> list[tuple[int, int]]:
    """Spans of what is used as an index: subscripts, places in rows, offsets of pointers, numbers of threads.

    ``host``: which step and which row it is are expressions of their own there, and offsets are added to pointers.
    """
    spans = set()
    for match in re.finditer(r"[\w\])]\[", code):  # x[...], not a declaration of an array, not a lambda
        before = re.search(r"(\w+)[\s*&>]*[\s*&>]\w+$", code[: match.start() + 1].splitlines()[-1])
        declares = (
            before
            and before.group(1) not in ("return", "else")
            and not re.search(r"[=(,?:+\-]\s*\w+$", code[: match.start() + 1])
        )
        inside = (match.end(), matching(code, match.end() - 1))
        if not declares and code[inside[0] : inside[1]].strip() and code[match.start()] != ")":
            spans.add(inside)
    for match in re.finditer(r"\b(?:load|store)<V>\(", code):
        first, second = arguments(code, match.end() - 1)[:2]
        spans.add(second)
        if "+" in code[slice(*first)]:
            spans.add(first)
    for match in re.finditer(r"\bkept\.(?:put|get)\(", code):
        spans.update(arguments(code, match.end() - 1)[:2])
    for match in re.finditer(r"\b(?:block_sum|kept)\(", code):
        for span in arguments(code, match.end() - 1)[:2]:
            if "+" in code[slice(*span)]:
                spans.add(span)
    for match in re.finditer(r"\* const \w+ = ", code):  # a row, or a part of one
        end = code.index(";", match.end())
        if "+" in code[match.end() : end] and "[&]" not in code[match.end() : end]:
            spans.add((match.end(), end))
    positions = POSITIONS["host" if host else "device"]
    for match in re.finditer(r"\b(?!if|for|while|switch|return)\w+(?:<[\w, <>]+>)?\(", code):  # told where it is
        for span in arguments(code, match.end() - 1):
            expression = code[slice(*span)]
            declares = re.search(r"\b(?:int64_t|int|bool|const)\b", expression)
            if re.fullmatch(r"[\w\s+\-*/%().]+", expression) and re.search(rf"\b(?:{positions})\b", expression):
                spans.update([] if declares else [span])
    if host:
        for match in re.finditer(r"pointer<[AT]>\([\w.]+\) \+ ", code):
            spans.add((match.end(), end_of(code, match.end(), ":;")))
        for match in re.finditer(rf"\b(?:{positions}) = ", code):
            spans.add((match.end(), end_of(code, match.end(), ",;")))
    for match in re.finditer(r"\b(?:threadIdx|blockIdx)\.[xyz]\b", code):
        spans.add(match.span())
    return sorted(spans)


def mutate() -> list[Site]:
    """Write the mutated sources; returns the places."""
    shutil.rmtree(MUTATED, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", MUTATED)
    sites: list[Site] = []
    for name in SOURCES:
        path = MUTATED / "cuda" / name
        text = path.read_text()
        code = blank(text)
        lines = text.splitlines()
        inserts: list[tuple[int, int, str]] = []  # position, order at that position, text

        def site(
            position: int, what: str, barrier: bool, name: str = name, text: str = text, lines: list[str] = lines
        ) -> int:
            line = text.count("\n", 0, position)
            sites.append(Site(name, line + 1, lines[line].strip(), " ".join(what.split()), barrier))
            return len(sites)

        for begin, end in indices(code, name.endswith(".cpp")):
            number = site(begin, text[begin:end], False)
            # Wider spans open first and close last.
            inserts.append((begin, -end, "(("))
            inserts.append((end, -begin - len(text), f") + lstm_fused_shift({number}))"))
        for match in re.finditer(r"__syncthreads\(\);", code):
            number = site(match.start(), "__syncthreads()", True)
            inserts.append((match.start(), 0, f"if (lstm_fused_shift({number}) == 0) "))
        for match in re.finditer(r"\bblock_sum\((?=\w+, shared)", code):  # the barrier in the middle of this one sum
            number = site(match.start(), "the barrier of this sum", True)
            inserts.append((matching(code, match.end() - 1), 0, f", {number}"))
        for position, _, inserted in sorted(inserts, key=lambda insert: insert[:2], reverse=True):
            text = text[:position] + inserted + text[position:]
        if name == "reduce.h":
            text = text.replace("A* shared) {", "A* shared, int site = 0) {")
            text = text.replace("__syncthreads();", "if (lstm_fused_shift(site) == 0) __syncthreads();")
        path.write_text(text)
    SHIFT.write_text(SHIFT_SOURCE)
    return sites


def build(name: str, flags: list[str]) -> Path:
    return emulation.build(name, MUTATED, ("-w", "-include", str(SHIFT), *flags))


def outcome(
    number: int, by: int, cases: list[Any], seeds: list[int], emulator: emulation.Emulator, seconds: float = 0
) -> str:
    """In a process of its own: "" when all cases pass, otherwise what stopped them. ``seconds``: 0 is any time."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process, and so does the next
        signal.alarm(int(10 * seconds))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # what sanitizer and emulator say
        emulator.library.lstm_fused_mutate(number, by)
        for case in cases:
            for seed in seeds:
                emulator.schedule(seed)
                try:
                    check(case)
                except BaseException:
                    os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "no end" if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else "stopped"
    return {0: "", 1: "wrong"}.get(os.WEXITSTATUS(status), "stopped")


def run_all(library: Path, mutants: list[tuple[int, int]], seeds: list[int]) -> dict[tuple[int, int], str]:
    """Every mutant (place, shift), and how it was caught."""
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    torch.set_num_threads(1)  # a forked process has no other
    emulator = emulation.Emulator(library)
    cases = sorted(all_cases(), key=lambda case: -len(case.name))  # those with most options first
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert not outcome(0, 0, cases, seeds, emulator), "the cases fail without any mutant"
    seconds = PATIENCE * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    results = {}
    for done, (number, by) in enumerate(mutants):
        results[number, by] = outcome(number, by, cases, seeds, emulator, seconds)
        if done % 100 == 99:
            print(f"{done + 1} of {len(mutants)} mutants", file=sys.stderr, flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="where to write what is printed, too")
    parser.add_argument("--pass", dest="second", type=Path, help=argparse.SUPPRESS)  # the second pass, by itself
    arguments = parser.parse_args()
    if arguments.second:  # reads the mutants, writes how they were caught
        library, mutants = json.loads(arguments.second.read_text())
        results = run_all(Path(library), [tuple(mutant) for mutant in mutants], SEEDS[1])
        arguments.second.write_text(json.dumps([[*mutant, how] for mutant, how in results.items()]))
        return 0

    start, sites = time.time(), mutate()
    mutants = [(number, by) for number, site in enumerate(sites, 1) for by in ((1,) if site.barrier else (1, -1))]
    results = run_all(build("mutants", []), mutants, SEEDS[0])
    left = [mutant for mutant, how in results.items() if not how]
    first_pass = len(left)
    if left:
        library = build("mutants_sanitized", emulation.SANITIZE)
        exchange = MUTATED.parent / "second_pass.json"
        exchange.write_text(json.dumps([str(library), left]))
        command = [sys.executable, __file__, "--pass", str(exchange)]
        subprocess.run(command, env=emulation.sanitizer_environment(), check=True)
        results |= {
            (number, by): how and f"{how} (second pass)" for number, by, how in json.loads(exchange.read_text())
        }

    lines, unexplained = [], 0
    survivors = [mutant for mutant, how in results.items() if not how]
    for number, by in survivors:
        site = sites[number - 1]
        what = f"without {site.what}" if site.barrier else f"{site.what} {by:+d}"
        excuses = [
            why
            for (file, part, mutant), why in EQUIVALENT.items()
            if (file, mutant) == (site.file, what) and part in site.text
        ]
        unexplained += not excuses
        lines.append(f"- {site.file}:{site.line}, {what}: {excuses[0] if excuses else 'NOT CAUGHT'}\n  `{site.text}`")
    report = REPORT.format(
        date=f"{date.today():%d %B %Y}",
        minutes=(time.time() - start) / 60,
        tried=len(mutants),
        caught=len(mutants) - len(survivors),
        first=len(mutants) - first_pass,
        second=first_pass - len(survivors),
        left=len(survivors),
        equivalent=len(survivors) - unexplained,
        table=table(sites, results),
        survivors="\n".join(lines) or "- none",
    )
    print(report)
    if arguments.report:
        arguments.report.write_text(report)
    return bool(unexplained)


def table(sites: list[Site], results: dict[tuple[int, int], str]) -> str:
    """How many were tried and caught, by file."""
    lines = ["| file | barriers removed | caught | indices shifted | caught |", "|---|---|---|---|---|"]
    for file in (*SOURCES, "all"):
        cells = []
        for barrier in (True, False):
            of_kind = [(sites[number - 1], how) for (number, _), how in results.items()]
            hows = [how for site, how in of_kind if site.barrier == barrier and file in (site.file, "all")]
            cells += [len(hows), sum(map(bool, hows))]
        lines.append(f"| {file} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
