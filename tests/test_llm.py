"""A server of the user's own: chat and JSON schema, through the openai client, against llama.cpp on loopback."""

from conftest import assert_ok, domain_embed, set_options

from domain_embed.beir import read_questions
from domain_embed.llm import embedded_llm
from domain_embed.stages import read_manifest


def test_questions_from_an_openai_compatible_server(documents, tmp_path):
    with embedded_llm() as llm:
        settings = (
            "generate.llm=any",
            f"generate.llm_base_url={llm.address}",
            "generate.llm_key_variable=MY_KEY",
            "generate.llm_concurrency=1",
            "generate.multi_hop_share=0.4",
            "generate.max_passages=6",
            "generate.round_trip_k=1000",  # a model this small cannot follow instructions: the way there is tested, not its questions
        )
        assert_ok(domain_embed("generate", "--documents", documents, *set_options(*settings), tmp_path / "run", MY_KEY="anything"))
    metrics = read_manifest(tmp_path / "run", "generate")["metrics"]
    assert metrics["asked_passages"] == 6 + 2  # and as many pairs as six passages of eight documents have
    assert metrics["funnel"]["written"] + 2 * metrics["unreadable_replies"] == 16
    kinds = {q.kind: len(q.positives) for q in read_questions(tmp_path / "run/1_generate/questions.jsonl")}
    assert kinds == {"factual": 1, "multi_hop": 2}
