"""Archives of evidence: their bytes follow from their contents, and no change of ours passes the program inside."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from eastwest.cli.evidence import verifier
from eastwest.cli.evidence.archive import build, pack, sealed
from eastwest.cli.evidence.collect import Collected, Window, spans
from eastwest.log.entry import Entry, encode
from eastwest.log.note import NoteKey, cosign
from eastwest.pki.signer import SoftwareNoteSigner
from eastwest.testing.log import ORIGIN, MemoryLog

PRINCIPAL = "spiffe://test.example/pay"
TIME = datetime(2026, 11, 22, 10, tzinfo=UTC)
FILES = {"estate.yaml": b"trust_domain: test.example\n", "services/pay.yaml": b"service: pay\n"}
SEGMENT = b"PAR1 whatever is in it PAR1"
SEALED_ROWS = {"first_row": 1, "last_row": 9, "rows": 9, "decisions": 9, "lost": 0}
COMMON = {"time": TIME, "actor": "spiffe://test.example/spire/server"}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def entries():
    certificate = b"a certificate"
    issued = {"certificate": "YSBjZXJ0aWZpY2F0ZQ==", "certificate_sha256": sha256(certificate), "serial": "1"}
    issued |= {"node": "n", "entry_id": "e", "door": "spire-api", "not_after": TIME}
    hashes = {name: sha256(content) for name, content in FILES.items()}
    sealed_facts = {"segment": "dt=2026-11-22/hour=10/1-9.parquet", "sha256": sha256(SEGMENT), **SEALED_ROWS}
    return [
        Entry("log.opened", {**COMMON, "subject": "spiffe://test.example"}),
        Entry("policy.activated", {**COMMON, "subject": "spiffe://test.example", "version": "v1", "files": hashes}),
        Entry("x509_svid.issued", {**COMMON, "subject": PRINCIPAL, **issued}),
        Entry("decision.segment.sealed", {**COMMON, "subject": sealed_facts["segment"], **sealed_facts}),
    ]


async def collected(log):
    raw = [encode(one) for one in entries()]
    await log.append(raw)
    head = await log.flush()
    proofs = [await log.prove(index) for index in range(len(raw))]
    checkpoint = proofs[0].partition("\n\n")[2]
    segment = {"segment": "dt=2026-11-22/hour=10/1-9.parquet", "sha256": sha256(SEGMENT), **SEALED_ROWS}
    return Collected(
        principal=PRINCIPAL,
        window=Window(TIME, TIME.replace(hour=12)),
        origin=ORIGIN,
        size=len(raw),
        root=head.root.hex(),
        checkpoint=checkpoint,
        vkeys={"log.vkey": f"{log.key.vkey}\n"},
        entries=dict(enumerate(zip(raw, proofs, strict=True))),
        estates={"v1": FILES},
        services=["pay"],
        rows=[
            {"row": 3, "kind": "decision", "time": "t", "service": "pay", "verdict": "allow", "code": "OK", "count": 7},
            {"row": 5, "kind": "decision", "time": "t", "service": "<b>", "verdict": "deny", "code": "NO"},
            {"row": 12, "kind": "lost", "time": "t", "count": 4, "cause": "spool_full"},
        ],
        segments=[{**segment, "entry": 3, "included": True}],
        segment_files={segment["segment"]: SEGMENT},
    )


@pytest.fixture
def log():
    return MemoryLog()


async def whole(log):
    """The files of an archive with its seal."""
    files = build(await collected(log))
    facts = {"manifest_sha256": sha256(files["manifest.json"])}
    entry = encode(Entry("evidence.collected", {**COMMON, "subject": PRINCIPAL, **facts}))
    [index] = await log.append([entry])
    await log.flush()
    return sealed(files, entry, await log.prove(index))


def judged(files, log):
    return verifier.verify(files, log.key.vkey)


async def test_a_whole_archive_holds(log):
    report = judged(await whole(log), log)
    assert (report.failed, report.notes) == ([], [])
    assert len(report.passed) == 9
    assert report.holds


async def test_the_same_contents_give_the_same_bytes(log, tmp_path):
    made = await collected(log)
    for name in ("one.zip", "one.tar.gz"):
        pack(build(made), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        turned = replace(made, entries=dict(reversed(made.entries.items())))
        pack(dict(reversed(build(turned).items())), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert verifier.read_archive(str(tmp_path / name)) == build(made)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "directory"])
async def test_it_is_judged_by_the_program_inside_where_nothing_of_ours_is(log, tmp_path, kind):
    files = await whole(log)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "verify.py").write_bytes(files["verify.py"])
    if kind == "directory":
        for name, content in files.items():
            (empty / name).parent.mkdir(parents=True, exist_ok=True)
            (empty / name).write_bytes(content)
        words = []
    else:
        pack(files, empty / f"evidence.{kind}")
        words = [f"evidence.{kind}"]
    # Without site-packages there is no cryptography either: signatures are checked by the program's own arithmetic.
    command = [sys.executable, "-I", "-S", "verify.py", *words, "--vkey", log.key.vkey]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False, env={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the evidence holds\n")
    blocked = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import eastwest"], cwd=empty, capture_output=True, check=False, env={}
    )
    assert blocked.returncode == 1


def rehashed(files):
    """The work of somebody who knows how a manifest is made."""
    manifest = json.loads(files["manifest.json"])
    kept = {name: content for name, content in files.items() if name != "manifest.json" and name not in verifier.SEAL}
    manifest["files"] = {name: sha256(content) for name, content in kept.items()}
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def without_entry(files, index):
    manifest = json.loads(files["manifest.json"])
    manifest["entries"].remove(index)
    ends = (f"log/entries/{index}.json", f"log/entries/{index}.tlog-proof")
    kept = {name: content for name, content in files.items() if name not in ends}
    return {**kept, "manifest.json": json.dumps(manifest).encode()}


def resealed(files):
    manifest = json.loads(files["manifest.json"])
    manifest["segments"][0]["sha256"] = "0" * 64
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def with_facts(files, change):
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def without_seal(files):
    return {name: content for name, content in files.items() if name not in verifier.SEAL}


def changed(name, old, new):
    def change(files):
        assert old in files[name], name
        return {**files, name: files[name].replace(old, new, 1)}

    return change


ROWS = "decisions/rows.jsonl"
SEALED = "decisions/segments/dt=2026-11-22/hour=10/1-9.parquet"
TAMPERING = {
    "a decision is turned": (changed(ROWS, b'"deny"', b'"allow"'), "files: changed"),
    "a decision is turned, and the manifest made anew": (
        lambda files: rehashed(changed(ROWS, b'"deny"', b'"allow"')(files)),
        "seal: the entry is not about this manifest",
    ),
    "a row is dropped": (
        lambda files: rehashed({**files, ROWS: b"".join(files[ROWS].splitlines(keepends=True)[1:])}),
        "decisions: ",
    ),
    "an entry is dropped": (lambda f: {n: c for n, c in f.items() if "/2." not in n}, "files: missing"),
    "an entry is dropped, and the manifest made anew": (
        lambda files: rehashed(without_entry(files, 2)),
        "seal: the entry is not about this manifest",
    ),
    "an entry is changed": (
        lambda files: rehashed(changed("log/entries/2.json", b"/pay", b"/bay")(files)),
        "entries: entry 2 is not in the log",
    ),
    "an entry stands for another": (
        lambda f: rehashed(
            {**f, **{f"log/entries/2.{end}": f[f"log/entries/1.{end}"] for end in ("json", "tlog-proof")}}
        ),
        "entries: the proof of log/entries/2 is of another entry",
    ),
    "a signature is false": (
        lambda files: rehashed(
            changed("log/entries/1.tlog-proof", b"test.example/eastwest-log ", b"other.example/log ")(files)
        ),
        "entries: a checkpoint is not signed by",
    ),
    "the policy is another": (
        lambda files: rehashed(changed("estate/v1/services/pay.yaml", b"pay", b"bay")(files)),
        "policy: the files of version v1",
    ),
    "a segment is changed": (
        lambda files: rehashed({**files, SEALED: SEGMENT + b"x"}),
        "segments: dt=2026-11-22/hour=10/1-9.parquet was changed",
    ),
    "a segment's hash is changed": (
        lambda files: rehashed(resealed(files)),
        "segments: dt=2026-11-22/hour=10/1-9.parquet was not sealed",
    ),
    "a segment is said to have more rows": (
        lambda files: rehashed(with_facts(files, lambda m: m["segments"][0].update(last_row=12))),
        "segments: dt=2026-11-22/hour=10/1-9.parquet was sealed with other numbers of rows",
    ),
    "the head is another": (
        lambda files: rehashed(with_facts(files, lambda m: m["log"].update(size=5))),
        "checkpoint: the manifest names another",
    ),
    "the seal is taken off, and a decision turned": (
        lambda files: without_seal(rehashed(changed(ROWS, b'"deny"', b'"allow"')(files))),
        "seal: the archive has no seal",
    ),
    "the page is changed": (changed("summary.html", b"Issued", b"Denied"), "files: changed: summary.html"),
    "a file is added": (lambda files: {**files, "extra": b""}, "files: not in the manifest: extra"),
    "the seal is another's": (
        lambda files: {
            **files,
            "seal/entry.json": files["log/entries/2.json"],
            "seal/entry.tlog-proof": files["log/entries/2.tlog-proof"],
        },
        "seal: ",
    ),
    "the manifest is no JSON": (lambda files: {**files, "manifest.json": b"{"}, "manifest: "),
    "the manifest is another format": (
        changed("manifest.json", b"eastwest-evidence/1", b"eastwest-evidence/2"),
        "manifest: the format",
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_is_found(log, what):
    change, told = TAMPERING[what]
    report = judged(change(await whole(log)), log)
    assert any(line.startswith(told) for line in report.failed), (report.failed, report.passed)


async def test_another_log_s_key_is_not_taken_from_the_archive(log):
    files = await whole(log)
    report = verifier.verify(files, "other.example/log+6fcd83d2+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    assert report.failed
    assert not judged(files, log).failed


async def test_an_archive_with_no_seal_or_no_given_key_is_no_evidence(log, capsys):
    files = build(await collected(log))
    report = verifier.verify(files)
    [told] = report.failed
    assert told.startswith("seal: the archive has no seal")
    report = verifier.verify(files, unsealed=True)
    assert (report.failed, len(report.notes), report.holds) == ([], 2, False)
    assert verifier.show(report) == 1
    assert capsys.readouterr().out.endswith("with no --vkey that you trust, anybody can have made it\n")
    report = verifier.verify(files, log.key.vkey, unsealed=True)
    assert (verifier.show(report), report.holds) == (0, True)


async def test_two_histories_within_one_archive_are_told(log):
    """The log's own operator can sign anything: what two entries were proven in must be one log."""
    files = await whole(log)
    other = MemoryLog()
    await other.append([encode(one) for one in entries()] + [b"another end"])
    await other.flush()
    forked = {**files, "log/entries/1.tlog-proof": (await other.prove(1)).encode()}
    report = judged(rehashed(forked), log)
    assert "one history: the log has signed two different trees of 5 entries: keep this archive" in report.failed
    assert any(line.startswith("entries: ") for line in report.passed), "each proof for itself is good"


async def with_second_signature(log):
    """The files of an archive whose checkpoints bear the log's ML-DSA-44 signature too."""
    second = SoftwareNoteSigner(MLDSA44PrivateKey.from_seed_bytes(bytes(32)))

    def signed(text):
        return text + cosign(text.rpartition("\n\n")[0].rpartition("\n\n")[2] + "\n", ORIGIN, second, 1_795_000_000)

    made = await collected(log)
    entries_ = {index: (raw, signed(proof)) for index, (raw, proof) in made.entries.items()}
    vkeys = {**made.vkeys, "log.ml-dsa-44.vkey": f"{NoteKey.of(ORIGIN, second).vkey}\n"}
    files = build(replace(made, entries=entries_, checkpoint=signed(made.checkpoint), vkeys=vkeys))
    facts = {"manifest_sha256": sha256(files["manifest.json"])}
    entry = encode(Entry("evidence.collected", {**COMMON, "subject": PRINCIPAL, **facts}))
    [index] = await log.append([entry])
    await log.flush()
    return sealed(files, entry, signed(await log.prove(index)))


async def test_no_letter_of_the_seal_s_second_signature_may_change(log):
    files = await with_second_signature(log)
    report = judged(files, log)
    assert (report.failed, report.notes) == ([], [])
    assert "second signature: ML-DSA-44, on every checkpoint" in report.passed
    proof = files[verifier.SEAL[1]].decode()
    start = proof.rindex("\u2014")
    for place in (start + 2, start + len(ORIGIN) + 4, start + len(ORIGIN) + 9, start + 500, start + 3000):
        letter = "A" if proof[place] != "A" else "B"
        changed_ = proof[:place] + letter + proof[place + 1 :]
        report = judged({**files, verifier.SEAL[1]: changed_.encode()}, log)
        assert not report.holds, place
        assert all(line.startswith("second signature: ") for line in report.failed)


async def test_what_is_wrong_with_a_seal_names_its_files(log):
    files = await whole(log)
    for name in verifier.SEAL:
        [told] = judged({path: raw for path, raw in files.items() if path != name}, log).failed
        assert told == f"seal: {name} is missing"
        [told] = judged({**files, name: files[name][:-20]}, log).failed
        assert told.startswith("seal: ")
        assert name in told


async def test_an_archive_cannot_speak_to_a_terminal_in_the_program_s_name(log, capsys):
    name = "\x1b[2J\x1b[Hok   all\nthe evidence holds\n\x1b[8m"
    assert verifier.show(judged({**await whole(log), name: b""}, log)) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "the evidence holds" not in out.splitlines()


@pytest.mark.parametrize("name", ["../up", "/root", "a/../../b", "a//b", "C:x", "a\\b", "./a", "a\x1b[2J", "a/\n"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_out_is_refused(tmp_path, name, kind):
    path = tmp_path / "x"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    report, files = verifier.judge(str(path), None)
    assert report.failed == [f"archive: {name!r} is no name for a file"]
    assert files == {}


def test_bombs_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(verifier, "FREE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(8 << 20))
    # Most of this one is a header, which no member's size tells of.
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("manifest.json")
        info.pax_headers = {"comment": "x" * (8 << 20)}
        archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("manifest.json", b"{}")
    for name, told in (("a.zip", "too large"), ("b.tar.gz", "too large"), ("c.zip", "compressed in a way")):
        [failed] = verifier.judge(str(tmp_path / name), None)[0].failed
        assert told in failed, name


def test_an_archive_that_nests_too_deeply_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", b"[" * 200_000)
    assert verifier.judge(str(path), None)[0].failed


async def test_a_name_twice_is_refused(log, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("manifest.json", b"[]")
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    report, _ = verifier.judge(str(tmp_path / "x.zip"), None)
    assert report.failed == ["archive: manifest.json is in the archive twice"]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"\x1f\x8b", b"PK\x03\x04" + bytes(200)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    report, _ = verifier.judge(str(tmp_path / "x.zip"), None)
    assert report.failed


async def test_the_page_shows_what_was_recorded_and_is_inert(log):
    page = build(await collected(log))["summary.html"].decode()
    assert PRINCIPAL in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "4 decisions" in page  # known to be lost


@pytest.mark.parametrize("seed", [bytes(32), b"\x01" * 32, bytes(range(32))])
def test_the_program_s_own_ed25519_agrees_with_cryptography(seed):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    for message in (b"", b"x" * 300):
        signature = key.sign(message)
        assert verifier.ed25519_slow(public, message, signature)
        for place in (0, 31, 32, 63):
            bent = bytearray(signature)
            bent[place] ^= 1
            assert not verifier.ed25519_slow(public, message, bytes(bent))
        assert not verifier.ed25519_slow(public, message + b"y", signature)
        high = int.from_bytes(signature[32:], "little") + verifier.Q
        assert not verifier.ed25519_slow(public, message, signature[:32] + high.to_bytes(32, "little"))
    assert not verifier.ed25519_slow(b"\xff" * 32, b"", bytes(64))


def test_pruned_entries_are_told_in_one_line():
    assert spans({9, 2, 0, 1, 11, 10, 4}) == "0-2, 4, 9-11"
    assert spans([7]) == "7"
