"""The index: changes, databases, kills, a cluster that loses a machine; and commands that answer without PyTorch."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import COMMAND, ROOT, assert_ok, assert_refused, domain_embed
from papermill.exceptions import PapermillExecutionError
from pgvector import Vector

from domain_embed import document_units, index, index_request
from domain_embed.beir import Passage
from domain_embed.catalog import add_units, forget_unseen, is_unchanged, live_units, open_catalog
from domain_embed.command_line import parse_arguments
from domain_embed.document_units import Unit
from domain_embed.index import run_index
from domain_embed.index import update_shards as index_update
from domain_embed.index_request import IndexRequest
from domain_embed.inference import encode_texts, load_exported
from domain_embed.manifests import open_stage
from domain_embed.models import load_model
from domain_embed.onnx_export import export_onnx
from domain_embed.pipeline import main
from domain_embed.postgres import connect, search_postgres, sync_postgres
from domain_embed.qdrant import open_qdrant, search_dense
from domain_embed.reading_pool import read_files
from domain_embed.runs import InputError, sha256
from domain_embed.shards import shard_path, shard_paths, vectors_of, write_shard
from domain_embed.vector_index import exact_top_k

PROGRAM = """
import json, sys
from pathlib import Path
from domain_embed import index

run, documents, to, log, ray = sys.argv[1:]
encode = index.encode_texts

def counted(model, texts, kind):
    with open(log, "a") as file:
        file.write(f"{len(texts)}\\n")
    return encode(model, texts, kind)

index.encode_texts = counted
found = index.run_index(index.IndexRequest(Path(run), documents, to, kind="none", shard_passages=64, ray=ray))
print(json.dumps(found["shards"]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A run folder of which only stage 5 is there."
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    with open_stage(run_dir, "export", {}) as stage:
        export_onnx(load_model("embedded", max_length=64), stage.folder / "onnx")
    return run_dir


@pytest.fixture
def archive(tmp_path):
    "Forty documents, some of which cannot be used."
    folder = tmp_path / "archive"
    (folder / "parts").mkdir(parents=True)
    for n in range(36):
        (folder / f"pump{n:02}.md").write_text(f"# Pump {n}\n\nPump {n} drains {3 * n} litres.\n\n## Reset\n\nHold key {n} for three seconds.\n")
    (folder / "parts/parts.csv").write_text("id,name,price\n" + "".join(f"{n},Seal {n},{n} EUR\n" for n in range(20)))
    (folder / "picture.bin").write_bytes(b"\0\1")
    (folder / "empty.md").write_text("\n")
    return folder


def ids_of(folder):
    return sorted(key for path in shard_paths(folder) for key in pq.read_table(path).column("id").to_pylist())


def test_an_index_follows_its_documents(exported, archive, tmp_path):
    request = IndexRequest(exported, str(archive), str(tmp_path / "index"), shard_passages=16)
    first = run_index(request)
    assert first["embedded"] == first["passages"] == len(set(ids_of(request.folder))) and first["skipped"] == 2
    (archive / "pump00.md").unlink()
    (archive / "pump01.md").write_text("# Pump 1\n\nPump 1 has been replaced.\n")
    (archive / "new.md").write_text("# Valve\n\nThe valve closes.\n")
    (archive / "parts/parts.csv").write_text("id,name,price\n" + "".join(f"{n},Seal {n},{n if n != 3 else 99} EUR\n" for n in range(19)))
    second = run_index(request)
    fresh = run_index(IndexRequest(exported, str(archive), str(tmp_path / "fresh"), shard_passages=16))
    assert ids_of(request.folder) == ids_of(tmp_path / "fresh") and second["passages"] == fresh["passages"]
    assert 0 < second["embedded"] < 6 and second["removed"] > 0
    assert run_index(request)["embedded"] == 0
    texts = {row["id"]: row["text"] for path in shard_paths(request.folder) for row in pq.read_table(path).to_pylist()}
    assert any("99 EUR" in text for text in texts.values()) and not any("Pump 0 " in text for text in texts.values())


def test_databases_answer_as_exact_search_does(exported, archive, tmp_path, postgres):
    vectors = encode_texts(load_exported(exported / "5_export/onnx"), ["how do I reset pump 7", "price of seal 4"], "query")
    found = {}
    for to in (postgres, f"qdrant:{tmp_path / 'qdrant'}"):
        for _ in range(2):  # the second time changes nothing
            result = run_index(IndexRequest(exported, str(archive), to, "manual", shard_passages=32, replace=True))
            found.setdefault(to, []).append(result["loaded"])
        assert found[to][0] > 0 and found[to][1] == 0
    folder = exported / "index"
    rows = [row["id"] for path in shard_paths(folder) for row in pq.read_table(path, columns=["id"]).to_pylist()]
    expected = [[rows[n] for n in own] for own in exact_top_k(shard_paths(folder), vectors, 5)[1]]
    client, connection = open_qdrant(str(tmp_path / "qdrant")), connect(postgres)
    assert [[key for key, _ in search_dense(client, "manual", vector, 5)] for vector in vectors] == expected
    assert [[key for key, _ in search_postgres(connection, "manual", vector, 5)] for vector in vectors] == expected


@pytest.fixture
def postgres(tmp_path):
    "The address of a PostgreSQL server with pgvector."
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path / "pg")
    yield server.get_uri()
    server.cleanup()


def test_bad_requests(exported, archive, tmp_path):
    run = exported
    assert_refused(domain_embed("index", run, "--documents", tmp_path / "nowhere"), "nowhere", "--documents")
    assert_refused(domain_embed("index", tmp_path), "not a run folder")
    assert_refused(domain_embed("index", run, "--replace", "--documents", archive, "--to", "postgresql://me:secret@127.0.0.1:1/db"), "PGPASSWORD")
    twice = tmp_path / "corpus.jsonl"
    twice.write_text('{"_id": "a", "text": "one"}\n{"_id": "a", "text": "two"}\n')
    assert_refused(domain_embed("index", run, "--documents", twice, "--to", tmp_path / "twice"), "'a'", "unique")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["params", "finetune"], ["run", "--dry-run", "--documents", "."], ["doctor"], []])
def test_quick_commands_import_no_torch(arguments, tmp_path):
    arguments = [*arguments, str(tmp_path / "new")] if "--dry-run" in arguments else arguments
    program = f"import sys; from domain_embed.pipeline import main\ntry: main({arguments!r})\nexcept SystemExit: pass\nprint('loaded', *{{n.partition('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded")[2].split())
    assert not loaded & {"torch", "transformers", "sentence_transformers", "pandas", "faiss", "papermill"}
    assert not (tmp_path / "new").exists()


def test_events_are_json_and_exit_statuses_differ(tmp_path):
    done = domain_embed("finetune", "--json", tmp_path / "run")
    event = json.loads(done.stdout)
    assert done.returncode == 2 and event["schema"] == 1 and event["event"] == "error" and not (tmp_path / "run").exists()
    *plan, cost = [json.loads(line) for line in assert_ok(domain_embed("run", "--json", "--dry-run", "--documents", tmp_path, tmp_path / "run")).splitlines()]
    assert [event["stage"] for event in plan] == ["generate", "prepare", "finetune", "evaluate", "export"]
    assert parse_arguments(shlex.split(cost["command"])[1:]).documents == str(tmp_path)
    assert "domain-embed" in assert_ok(domain_embed("--print-completion", "bash"))
    head = subprocess.Popen([COMMAND, "params"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    head.stdout.close()  # as `| head -1` does
    assert head.wait() == 0 and not head.stderr.read()


@pytest.mark.parametrize(("name", "status"), [("OSError", 4), ("OutOfMemoryError", 4), ("MemoryError", 4), ("InputError", 2), ("ValueError", 1)])
def test_a_fault_in_a_stage_has_its_exit_status(tmp_path, monkeypatch, name, status):
    def fail(*_: object) -> None:
        raise PapermillExecutionError(0, 1, "", name, "no space left", [])

    monkeypatch.setattr("domain_embed.execution._papermill", fail)
    (tmp_path / "manual.md").write_text("# Pump\n\nIt moves water.\n")
    assert main(["generate", "--documents", str(tmp_path / "manual.md"), str(tmp_path / "run")]) == status


def index_process(exported, documents, to, log, ray=""):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, (exported, documents, to, log, ray))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture(scope="module")
def undisturbed(exported, tmp_path_factory):
    "The shards that an undisturbed run over the example corpus writes."
    folder = tmp_path_factory.mktemp("whole")
    return json.loads(index_process(exported, ROOT / "examples/python/documents", folder / "index", folder / "log").communicate()[0])


def update(exported, documents, to, log, moment=lambda: None):
    "Run `PROGRAM` until it ends, killed after each moment; the shards, and the number of kills."
    kills = 0
    while True:
        process = index_process(exported, documents, to, log)
        try:
            return json.loads(process.communicate(timeout=moment())[0]), kills
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1


def test_what_a_killed_run_no_longer_found_is_removed_by_the_next(tmp_path):
    def rows(numbers, stamp):
        units = [Unit(f"parts.csv#{n}", "parts.csv", (Passage(f"parts.csv#{n}", "parts.csv", "", f"Part {n}, version {stamp}."),)) for n in numbers]
        return [*units[:-1], replace(units[-1], stamp=(stamp, stamp))]

    catalog, run = open_catalog(tmp_path / "catalog.sqlite")
    add_units(catalog, run, 0, rows((1, 2, 3), stamp=1))
    forget_unseen(catalog, run)
    catalog, run = open_catalog(tmp_path / "catalog.sqlite")
    add_units(catalog, run, 1, rows((1, 2), stamp=2))  # the third is deleted, and the run is killed here
    catalog, run = open_catalog(tmp_path / "catalog.sqlite")
    assert is_unchanged(catalog, run, "parts.csv", (2, 2)) and forget_unseen(catalog, run) == 1
    assert [live_units(catalog, shard) for shard in (0, 1)] == [set(), {"parts.csv#1", "parts.csv#2"}]


@pytest.mark.slow
def test_twenty_kills_change_nothing(exported, tmp_path):
    documents, old, log = tmp_path / "documents", tmp_path / "old", tmp_path / "log"
    shutil.copytree(ROOT / "examples/python/documents", documents)
    (documents / "gone.md").write_text("# Gone\n\nThis page will be deleted.\n")
    update(exported, documents, old, log)
    (documents / "gone.md").unlink()
    for number, path in enumerate(sorted(documents.rglob("*.md"))):  # two of three change
        if number % 3:
            path.write_text(path.read_text() + "\n\nThis page has been revised.\n")
    expected, start = {}, time.monotonic()
    for first in (False, True):
        to = tmp_path / f"expected{first}"
        if not first:
            shutil.copytree(old, to)
        expected[first] = update(exported, documents, to, log)[0], ids_of(to)
    assert expected[False][1] == expected[True][1]
    seconds, moments, landed, rounds = (time.monotonic() - start) / 2, random.Random(0), 0, 0
    while landed < 20:
        rounds += 1
        first, to = rounds % 2 == 0, tmp_path / f"index{rounds}"
        if not first:
            shutil.copytree(old, to)
        log.unlink(missing_ok=True)
        shards, kills = update(exported, documents, to, log, lambda: moments.uniform(2, 0.6 * seconds))
        landed += kills
        assert (shards, ids_of(to)) == expected[first]
        if first:
            largest = max(pq.read_metadata(path).num_rows for path in shard_paths(to))
            embedded, passages = sum(map(int, log.read_text().split())), len(ids_of(to))
            assert passages <= embedded <= passages + largest * kills, "at most the shard in work is embedded again"
    print(f"{landed} kills in {rounds} runs")


def wait_for(process, happened):
    while not happened():
        assert process.poll() is None
        time.sleep(0.2)


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_writes_the_same(exported, undisturbed, tmp_path):
    pytest.importorskip("ray", reason="make test-slow installs it")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        process = index_process(exported, ROOT / "examples/python/documents", tmp_path / "index", tmp_path / "log", cluster.address)
        wait_for(process, lambda: (tmp_path / "index/catalog.sqlite").exists())  # the program is connected to the head
        lost = cluster.add_node(num_cpus=2)
        wait_for(process, lambda: shard_paths(tmp_path / "index"))  # some work is done and some under way
        cluster.remove_node(lost, allow_graceful=False)
        done = len(shard_paths(tmp_path / "index"))
        assert json.loads(process.communicate()[0].splitlines()[-1]) == undisturbed
        assert done < len(undisturbed), "the machine was lost too late"
    finally:
        cluster.shutdown()


READ = """
import json, os, sys
from types import SimpleNamespace
from domain_embed.corpus import read_documents
from domain_embed.models import load_model
from domain_embed.profiles import load_profile
own = {"documents": sys.argv[1], "run_dir": sys.argv[2]}
corpus = read_documents(SimpleNamespace(**load_profile("embedded")["generate"] | own), load_model("embedded", 256).tokenizer)
print(json.dumps([[vars(p) for p in corpus.passages], corpus.documents, corpus.boilerplate], default=str))
"""


@pytest.mark.slow
def test_stage_1_reads_the_same_on_a_cluster_that_loses_a_machine(tmp_path):
    pytest.importorskip("ray", reason="make test-slow installs it")
    from ray.cluster_utils import Cluster

    folder = tmp_path / "documents"
    shutil.copytree(ROOT / "examples/python/documents", folder)
    for number in range(600):  # more files than one task reads, and near duplicates
        (folder / f"note{number:03}.md").write_text(f"# Note {number}\n\nThe pump in hall {number % 50} was cleaned, and its filter was replaced by the team of the week.\n")

    def read(address=""):
        own = os.environ | ({"DOMAIN_EMBED_RAY": address} if address else {})
        return subprocess.Popen([sys.executable, "-c", READ, folder, tmp_path / f"run{bool(address)}"], env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def answer(process):
        return next(line for line in process.communicate()[0].splitlines() if line.startswith("[["))  # Ray writes lines of its own

    expected = answer(read())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1)
        process = read(cluster.address)
        time.sleep(25)  # two tasks are under way
        cluster.remove_node(lost, allow_graceful=False)
        assert answer(process) == expected
    finally:
        cluster.shutdown()


def test_vectors_are_the_served_ones(exported, archive, tmp_path):
    request = IndexRequest(exported, str(archive), str(tmp_path / "index"), kind="none")
    run_index(request)
    table = pq.read_table(shard_paths(request.folder)[0])
    texts = [f"{title}. {text}" if title else text for title, text in zip(table.column("title").to_pylist(), table.column("text").to_pylist(), strict=True)]
    again = encode_texts(load_exported(exported / "5_export/onnx"), texts[:9], "document")
    assert np.abs(again - vectors_of(table)[:9]).max() < 1e-5


def test_what_cannot_be_read_stays(exported, archive, tmp_path, monkeypatch):
    request = IndexRequest(exported, str(archive), str(tmp_path / "index"), shard_passages=16)
    first = run_index(request)
    secret = archive / "pump05.md"
    text = secret.read_text()
    secret.unlink()
    secret.symlink_to(archive / "unmounted.md")
    second = run_index(request)
    assert second["passages"] == first["passages"] and second["removed"] == 0 and second["skipped"] == first["skipped"] + 1
    assert "pump05.md" in (request.folder / "skipped.jsonl").read_text()
    secret.unlink()
    secret.write_text(text.replace("Hold", "Press"))
    third = run_index(request)
    assert third["embedded"] > 0 and third["passages"] == first["passages"] and third["skipped"] == first["skipped"]
    away = archive.rename(tmp_path / "away")
    archive.mkdir()
    with pytest.raises(InputError, match="nothing was removed"):
        run_index(request)
    archive.rmdir()
    away.rename(archive)
    assert run_index(request)["embedded"] == 0 and run_index(request)["passages"] == first["passages"]


def test_a_lost_shard_is_made_again(exported, archive, tmp_path):
    request = IndexRequest(exported, str(archive), str(tmp_path / "index"), shard_passages=16)
    first = run_index(request)
    expected = ids_of(request.folder)
    shard_paths(request.folder)[1].unlink()
    path = shard_paths(request.folder)[0]
    path.write_bytes(path.read_bytes()[:1000])
    second = run_index(request)
    assert ids_of(request.folder) == expected and 0 < second["embedded"] < first["embedded"]


def test_touched_files_are_read_once_and_changed_rules_read_all(exported, archive, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(document_units, "read_files", lambda files, *more, **options: read.append(len(files)) or read_files(files, *more, **options))
    request = IndexRequest(exported, str(archive), str(tmp_path / "index"))
    run_index(request)
    (archive / "pump03.md").touch()
    assert run_index(request)["embedded"] == 0 and run_index(request)["embedded"] == 0
    assert read == [39, 1], "the touched file is read once more, and then never"
    rules = index_request.CutRules
    monkeypatch.setattr(index_request, "CutRules", lambda ends, **own: rules(ends, **own | {"passage_tokens": 20}))
    monkeypatch.setattr(index, "update_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as if killed: the new rules are recorded, and no file counts as read
        run_index(request)
    monkeypatch.setattr(index, "update_shards", index_update)
    assert run_index(request)["embedded"] > 20


def test_a_password_is_never_shown(exported, archive):
    for to in ("postgresql://me:secret@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?password=secret", "http://me:secret@127.0.0.1:1", "mysql://me:secret@h/db"):
        done = domain_embed("index", exported, "--replace", "--documents", archive, "--to", to)
        assert done.returncode == 2 and "secret" not in done.stdout + done.stderr, done.stderr


@pytest.mark.slow
def test_ten_thousand_vectors_in_postgres(postgres, tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 128))
    vectors = (centres[rng.integers(0, 100, 10_000)] + 0.7 * rng.normal(size=(10_000, 128))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for number in range(3):
        block = vectors[number * 4_000 : (number + 1) * 4_000]
        units = [Unit(f"d{number * 4_000 + n}", "", (Passage(f"d{number * 4_000 + n}", "d", "", "text"),)) for n in range(len(block))]
        write_shard(shard_path(tmp_path, number), units, block)
    connection = connect(postgres)
    assert sync_postgres(connection, "many", {path: sha256(path) for path in shard_paths(tmp_path)}, 128, "mine") == 3
    queries = vectors[::200] + 0.05 * rng.normal(size=(50, 128)).astype(np.float32)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    plan = connection.execute("explain select id from many order by embedding <#> %s limit 10", [Vector(queries[0])]).fetchall()
    assert "many_embedding" in str(plan)
    found = [{int(key[1:]) for key, _ in search_postgres(connection, "many", query, 10)} for query in queries]
    assert np.mean([len(own & set(best)) / 10 for own, best in zip(found, expected.tolist(), strict=True)]) > 0.9
