"""``make fuzz``: every target and every test of this directory, for as long as is said.

    make fuzz ARGS='--seconds 600'          # half for the targets one after another, half for the tests
    make fuzz ARGS='--only jwt,crl'         # these targets alone
    python tests/fuzz/run.py --target jwt --replay crash-...

A target runs under atheris in a process of its own, bounded in memory, with its good inputs to begin from. An input
that breaks it is left as a file in ``.fuzz/``; once mended it belongs into ``fuzz_targets`` or ``test_targets``. Where
atheris has no wheel, hypothesis alone does the work.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
KEPT = TOP / ".fuzz"
MEGABYTES = 2048
INPUT_SECONDS = 20
MAX_BYTES = 65536


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="in all (600)")
    parser.add_argument("--only", default="", help="targets, by name, with commas")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help="one input, without a fuzzer")
    options = parser.parse_args()
    if options.target:
        return one(options.target, options.seconds, options.replay)
    from fuzz_targets import open_targets

    chosen = [name for name in open_targets() if not options.only or name in options.only.split(",")]
    failed = []
    coverage = importlib.util.find_spec("atheris") is not None
    share = options.seconds * (1.0 if options.only else 0.5) / max(1, len(chosen)) if coverage else 0.0
    if coverage:
        for name in chosen:
            command = [sys.executable, __file__, "--target", name, "--seconds", str(max(1, round(share)))]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            print(f"{'ok    ' if done.returncode == 0 else 'BROKEN'} {name}: {executions(done.stderr)}", flush=True)
            if done.returncode:
                print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
                failed.append(name)
    if not options.only or not coverage:
        failed += tests(options.seconds - share * len(chosen))
    print(f"broken: {', '.join(failed)}" if failed else "nothing broke")
    return 1 if failed else 0


def tests(seconds: float) -> list[str]:
    """The tests of this directory, with other examples and more of them each time, until the time is over."""
    end, times = time.monotonic() + seconds, 2
    while (left := end - time.monotonic()) > 5:
        environment = os.environ | {"EASTWEST_FUZZ_EXAMPLES": str(times)}
        command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-x", "--timeout=3600", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(command, check=False, cwd=TOP, env=environment, timeout=left)
        except subprocess.TimeoutExpired:
            return []
        if done.returncode:
            return ["tests"]
        times *= 2
    return []


def one(name: str, seconds: int, replay: Path | None) -> int:
    """One target in this process."""
    import resource
    import warnings

    warnings.simplefilter("ignore")
    if replay is not None:
        from fuzz_targets import open_targets

        open_targets()[name].feed(replay.read_bytes())
        return 0
    import atheris

    with atheris.instrument_imports(include=["eastwest", "fuzz_targets"]):
        from fuzz_targets import open_targets
    target = open_targets()[name]
    word = name.replace(" ", "-")
    corpus = KEPT / word
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    resource.setrlimit(resource.RLIMIT_DATA, (MEGABYTES << 20, MEGABYTES << 20))
    bounds = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEGABYTES}"]
    atheris.Setup(
        [sys.argv[0], *bounds, f"-max_len={MAX_BYTES}", f"-artifact_prefix={KEPT}/{word}-", str(corpus)], target.feed
    )
    atheris.Fuzz()
    return 0


def executions(told: str) -> str:
    """libFuzzer's last word on how often it ran the target."""
    done = [line for line in told.splitlines() if line.startswith(("Done ", "#"))]
    return done[-1].strip() if done else "no figures"


if __name__ == "__main__":
    sys.path[:0] = [str(HERE)]
    sys.exit(main())
