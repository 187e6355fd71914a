"""Writes src/eastwest/api from proto/ and what else is made from sources, or with --check says whether all is fresh.

docs/reference/log-schema.json is made from the catalogue of log kinds (src/eastwest/log/kinds.py).

Two generators run over every proto/**/*.proto: protoc itself (messages) and mypy-protobuf (their types); services
are bound by descriptor (eastwest.rpc), so no stubs are made. Both assume that the proto tree is the root of the import
path; here it lies inside a package, so each mention of a generated module gets the prefix `eastwest.api.`. Modules of
wheels, such as google.protobuf, keep their names. The same tree and tools give the same bytes.

src/eastwest/api/__init__.py is written by hand and left alone; everything below it is owned by this program.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
API = ROOT / "src" / "eastwest" / "api"
PREFIX = "eastwest.api."
REMEDY = "run `make generate` and commit what it changed"


def main() -> int:
    options = _options()
    sources = sorted(PROTO.rglob("*.proto"))
    if not sources:
        print(f"generate: no .proto files below {PROTO}", file=sys.stderr)
        return 1
    try:
        wanted = generate(sources)
    except subprocess.CalledProcessError as failure:
        print(f"generate: protoc failed:\n{failure.stderr.rstrip()}", file=sys.stderr)
        return 1
    documents = _documents()
    outdated = [path for path, text in documents.items() if not path.is_file() or path.read_text() != text]
    present = _present()
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if options.check:
        return max(_report(stale, wanted, present), _report_documents(outdated))
    _write(stale, wanted)
    for path in outdated:
        path.write_text(documents[path])
        print(f"generate: {path.relative_to(ROOT)} is new")
    print(f"generate: {len(sources)} proto files, {len(wanted)} files in {API.relative_to(ROOT)}, {len(stale)} changed")
    return 0


def generate(sources: Iterable[Path]) -> dict[str, bytes]:
    """Everything that belongs below src/eastwest/api, by path relative to it. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="eastwest-generate-") as folder:
        output = Path(folder)
        _protoc(sources, output)
        produced = {
            path.relative_to(output).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(output.rglob("*"))
            if path.suffix in {".py", ".pyi"}
        }
    moved = _Mover(produced)
    files = {name: moved.rewrite(text) for name, text in produced.items()}
    files.update(_package_files(files))
    return {name: text.encode() for name, text in files.items()}


def _documents() -> dict[Path, str]:
    """Files outside src/eastwest/api that are made from our own sources."""
    # In a process of its own: what lies below src/eastwest/api may be stale, and this program mends it.
    command = [sys.executable, "-c", "from eastwest.log.schema import schema_text; print(schema_text(), end='')"]
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return {ROOT / "docs/reference/log-schema.json": made.stdout}


def _report_documents(outdated: Iterable[Path]) -> int:
    for path in outdated:
        print(f"generate: {path.relative_to(ROOT)}: stale; {REMEDY}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if src/eastwest/api is stale")
    return parser.parse_args()


def _protoc(sources: Iterable[Path], output: Path) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    includes = [PROTO, Path(str(resources.files("grpc_tools") / "_proto"))]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        *(f"--proto_path={folder}" for folder in includes),
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--python_out={output}",
        f"--mypy_out=quiet:{output}",
        *(source.relative_to(PROTO).as_posix() for source in sources),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)


class _Mover:
    """Prefixes the names of generated modules wherever a generator wrote one, in code, annotations and strings."""

    def __init__(self, produced: Iterable[str]) -> None:
        modules = {name.rsplit(".", 1)[0].replace("/", ".") for name in produced}
        dotted = "|".join(sorted(map(re.escape, modules), key=len, reverse=True))
        self._mention = re.compile(rf"(?<![\w.])(?:{dotted})\b")
        parents: dict[str, set[str]] = {}
        for module in modules:
            package, _, leaf = module.rpartition(".")
            parents.setdefault(package, set()).add(leaf)
        self._parents = parents
        self._from_import = re.compile(r"^from (\S+) import (\w+)", re.MULTILINE)

    def rewrite(self, text: str) -> str:
        text = self._from_import.sub(self._move_from_import, text)
        return self._mention.sub(lambda found: PREFIX + found.group(), text)

    def _move_from_import(self, found: re.Match[str]) -> str:
        package, leaf = found.groups()
        if leaf not in self._parents.get(package, ()):
            return found.group()
        return f"from {PREFIX}{package} import {leaf}"


def _package_files(names: Iterable[str]) -> dict[str, str]:
    """An __init__.py for each folder below the api package; the api package's own is written by hand."""
    folders = {parent for name in names for parent in Path(name).parents} - {Path()}
    return {
        (folder / "__init__.py").as_posix(): f'"""Generated from proto/{folder.as_posix()} by tools/generate.py."""\n'
        for folder in folders
    }


def _present() -> dict[str, bytes]:
    """What lies below src/eastwest/api now, bytecode and the hand-written __init__.py aside."""
    return {
        path.relative_to(API).as_posix(): path.read_bytes()
        for path in API.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path != API / "__init__.py"
    }


def _report(stale: list[str], wanted: Mapping[str, bytes], present: Mapping[str, bytes]) -> int:
    if not stale:
        print(f"generate: {API.relative_to(ROOT)} is fresh ({len(wanted)} files)")
        return 0
    for name in stale:
        fault = "missing" if name not in present else "not from proto/" if name not in wanted else "stale"
        print(f"generate: {API.relative_to(ROOT) / name}: {fault}", file=sys.stderr)
    print(f"generate: {REMEDY}", file=sys.stderr)
    return 1


def _write(stale: Iterable[str], wanted: Mapping[str, bytes]) -> None:
    for name in stale:
        target = API / name
        if name in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wanted[name])
        else:
            target.unlink()
    folders = sorted((path for path in API.rglob("*") if path.is_dir()), reverse=True)
    for folder in folders:
        if folder.name != "__pycache__" and not any(folder.iterdir()):
            folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
