"""A server of the user's own, through the openai client, against llama.cpp on loopback: chat and JSON schema, faults, a budget, a judge."""

import subprocess
import time

import pytest
from conftest import COMMAND, assert_ok, assert_refused, domain_embed, run_here, set_options
from faulty_proxy import FaultyProxy

from domain_embed.beir import read_questions
from domain_embed.jsonl import read_jsonl
from domain_embed.llm import embedded_llm
from domain_embed.manifests import read_manifest

SHORT = """
system: "Write in $language about what stands between $mark."
ask: "$mark\\n$text\\n$mark\\n$style$identifiers$number queries as JSON: $wanted"
multi_hop: "$mark\\n$text\\n$mark\\n$style$identifiers$number queries over $hops texts as JSON."
judge: "$mark\\n$text\\n$mark\\n$queries\\nScores as JSON."
examples: []
"""


def settings(address, folder, *more):
    "A model this small cannot follow instructions: the way there is tested, not its questions."
    (folder / "short.yaml").write_text(SHORT)
    return (
        f"generate.prompts={folder}/short.yaml",
        "generate.passage_tokens=60",
        "generate.llm=any",
        f"generate.llm_base_url={address}",
        "generate.llm_api_key_env=MY_KEY",
        "generate.prompt_style=json_schema",
        "generate.llm_max_tokens=120",
        "generate.round_trip_k=1000",
        "generate.max_copied_words=100",
        *more,
    )


def test_json_multi_hop_and_judge_through_a_faulty_server(documents, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with embedded_llm() as llm, FaultyProxy(llm.addresses, share=0.2, stall=0) as proxy:
        more = ("generate.question_types={factual: 1, multi_hop: 1}", "generate.max_passages=3", "generate.judge_llm=generator", "generate.min_judge_score=1")
        run_here("generate", tmp_path / "run", f"generate.documents={documents}", *settings(proxy.url, tmp_path, *more))
        assert max(proxy.delivered.values()) == 1
    metrics = read_manifest(tmp_path / "run", "generate")["metrics"]
    written = sum(len(row["deduplicated_qa_pairs"]) for row in read_jsonl(tmp_path / "run/1_generate/generated.jsonl"))
    assert written == metrics["funnel"]["kept"] > 0
    rows = [*read_jsonl(tmp_path / "run/1_generate/questions.jsonl"), *read_jsonl(tmp_path / "run/1_generate/dropped.jsonl")]
    assert {row["kind"]: len(row["positives"]) > 1 for row in rows} == {"factual": False, "multi_hop": True}
    asked = {p for row in rows for p in row["positives"]} | {
        p for row in read_jsonl(tmp_path / "run/1_generate/unanswered.jsonl") for p in row["passages"]
    }
    assert metrics["asked_passages"] == len(asked)  # every passage ends with its questions or a reason
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-very-secret" in p.read_bytes()]
    kept = read_questions(tmp_path / "run/1_generate/questions.jsonl")
    assert all(set(q.scores) == {"relevance", "accuracy", "context_support", "clarity", "overall"} for q in kept)


@pytest.mark.slow
def test_estimate_then_a_budget_that_stops_cleanly(documents, tmp_path):
    with embedded_llm() as llm, FaultyProxy(llm.addresses, share=0) as proxy:
        prices = (
            "generate.llm_input_price=1000",
            "generate.llm_output_price=2000",
            "generate.max_passages=9",
            "generate.questions_per_passage=1",
            "generate.question_types={factual: 1}",
        )
        options = ("--documents", documents, *set_options(*settings(proxy.url, tmp_path, *prices)))
        printed = assert_ok(domain_embed("generate", "--estimate", *options, tmp_path / "run", MY_KEY="x"))
        assert printed.startswith("generator ") and "3 requests (6 answered already)" in printed
        sent = len((tmp_path / "run/cache/replies.jsonl").read_text().splitlines())
        assert not (tmp_path / "run/1_generate").exists() and sent >= 6
        spent = sum(1000 * r["tokens_in"] + 2000 * r["tokens_out"] for r in read_jsonl(tmp_path / "run/cache/replies.jsonl")) / 1e6
        budget = spent + 2.0  # a token is a byte at least, so more is set aside for a request than it will cost
        assert_ok(domain_embed("generate", *options, "--set", f"generate.max_budget={budget}", tmp_path / "run", MY_KEY="x"))
        metrics = read_manifest(tmp_path / "run", "generate")["metrics"]
        assert metrics["cost"] <= budget and metrics["unanswered"]["the budget is spent"] > 0 and metrics["funnel"]["kept"] > 0
        assert_refused(domain_embed("generate", *options, "--set", "generate.llm_input_price=0", "--set", "generate.llm_output_price=0", "--set", "generate.max_budget=1", tmp_path / "run", MY_KEY="x"), "max_budget needs prices")  # fmt: skip


@pytest.mark.slow
def test_questions_on_a_cluster_that_loses_a_machine(documents, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="make test-slow installs it")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("MY_KEY", "x")  # of every machine
    sizes = ("generate.max_passages=72", "generate.questions_per_passage=1", "generate.question_types={factual: 1}", "generate.llm_concurrency=4")
    with embedded_llm() as llm, FaultyProxy(llm.addresses, share=0) as proxy:
        options = ("--documents", documents, *set_options(*settings(proxy.url, tmp_path, *sizes)))
        assert_ok(domain_embed("generate", *options, tmp_path / "alone"))
        assert max(proxy.delivered.values()) == 1
        requests = len(proxy.delivered)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            lost = cluster.add_node(num_cpus=1)
            process = subprocess.Popen([COMMAND, "generate", "--ray", cluster.address, *map(str, options), tmp_path / "ray"], stdout=subprocess.DEVNULL)
            shards = (tmp_path / "ray/cache").glob
            while process.poll() is None and sum(path.read_bytes().count(b"\n") for path in shards("replies-*.jsonl")) < requests / 3:
                time.sleep(0.2)
            cluster.remove_node(lost, allow_graceful=False)
            assert sum(path.read_bytes().count(b"\n") for path in shards("replies-*.jsonl")) < requests, "the machine was lost too late"
            assert process.wait() == 0
        finally:
            cluster.shutdown()
        assert len(proxy.delivered) == requests  # the same requests
        again = sum(number - 2 for number in proxy.delivered.values() if number > 2)
        assert again <= 4, "only what the lost machine had under way is sent twice"
    for name in ("questions.jsonl", "dropped.jsonl", "unanswered.jsonl", "generated.jsonl"):
        assert (tmp_path / "alone/1_generate" / name).read_bytes() == (tmp_path / "ray/1_generate" / name).read_bytes()
    alone, ray = ({path.name: path.read_bytes() for path in (tmp_path / run / "cache/vectors").glob("*/*.npy") if path.parent.name != "bm25"} for run in ("alone", "ray"))
    assert alone == ray and alone
