"""The client against a real server whose every second or third answer goes wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import FAULTS, FaultyProxy

from domain_embed import attempts
from domain_embed.beir import Passage
from domain_embed.completion import Answer, Job, complete
from domain_embed.judge import read_scores
from domain_embed.llm import connect, embedded_llm
from domain_embed.multihop import RelatedPassages
from domain_embed.prompts import PromptStyle
from domain_embed.question_prompts import QuestionRequest
from domain_embed.questions import choose_style, collect, plan
from domain_embed.responses import Reply, ResponseCache

FEW = 60


def jobs(number: int = FEW) -> list[Job]:
    "Small requests whose replies depend on nothing but the request."
    plain = {"max_tokens": 8, "temperature": 0, "stop": ["\n"], "extra_body": {"cache_prompt": False}}
    return [Job([{"prompt": f"1 + 1 = 2\n3 + 3 = 6\n{n} + {n} =", "seed": n} | plain]) for n in range(number)]


def server(url: str):
    "The proxy as a user's LLM."
    return connect("any", url, "CLIENT_KEY", concurrency=6, retries=12, timeout=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attempts, "PAUSE", 0.05)
    monkeypatch.setenv("CLIENT_KEY", "anything")


@pytest.mark.parametrize("number", [FEW, pytest.param(200, marks=pytest.mark.slow)])
def test_requests_with_faults_none_lost_none_paid_twice(tmp_path, number):
    with embedded_llm() as own, FaultyProxy(own.addresses, share=0.35) as proxy:
        answers = complete(server(proxy.url), jobs(number), ResponseCache(tmp_path / "replies.jsonl"))
        assert all(a.text and not a.reason for (a,) in answers)
        assert len(proxy.delivered) == number and set(proxy.delivered.values()) == {1}
        assert number == FEW or all(proxy.faults[fault] for fault in set(FAULTS))
        assert len(ResponseCache(tmp_path / "replies.jsonl").known) == number
        again = complete(server(proxy.url), jobs(number), ResponseCache(tmp_path / "replies.jsonl"))
        assert again == answers and set(proxy.delivered.values()) == {1}


def test_what_never_succeeds_has_a_reason_and_costs_no_other(tmp_path):
    with embedded_llm() as own, FaultyProxy(own.addresses, share=0) as proxy:
        refused = Job([{"prompt": "x " * 5000, "max_tokens": 4}])  # longer than the model's context: HTTP 400
        few = jobs()[:4]
        answers = complete(server(proxy.url), [*few[:2], refused, *few[2:]], ResponseCache(tmp_path / "replies.jsonl"))
    assert [bool(a.text) for (a,) in answers] == [True, True, False, True, True] and answers[2][0].reason == "HTTP 400"


WRITER = """
import sys
from domain_embed.responses import Reply, ResponseCache
cache = ResponseCache(sys.argv[1])
for n in range(3000):
    cache.add(f"key {n}", Reply(f"reply {n}", "stop", 1, 1, 0.0))
"""


def test_an_estimate_beside_a_running_generate_destroys_no_reply(tmp_path):
    store = tmp_path / "replies.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(store)])
    opened = 0
    while process.poll() is None:
        ResponseCache(store)
        opened += store.exists()
    assert process.returncode == 0 and opened > 20
    assert ResponseCache(store).known == {f"key {n}": Reply(f"reply {n}", "stop", 1, 1, 0.0) for n in range(3000)}


def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path):
    store = tmp_path / "replies.jsonl"
    whole = Reply("half of a character: ?", "stop", 1, 1, 0.0)
    ResponseCache(store).add("a", whole)
    store.write_bytes(store.read_bytes() + b'{"key": "b", "text": "cut')
    ResponseCache(store).add("c", whole)
    assert ResponseCache(store).known == {"a": whole, "c": whole}
    with store.open("ab") as file:  # another process was killed while this one had the file open
        file.write(b'{"key": "d", "text": "cu' + store.read_bytes())
    assert ResponseCache(store).known == {"a": whole, "c": whole}


def test_hostile_replies_are_read():
    deep, half, odd = "[" * 3000 + "]" * 3000, '{"question": "what is \\ud83d", "complexity": [1]}', '{"query": [1], "overall": 8}'
    request = QuestionRequest([Passage("p", "d", "", "water")], ["factual"], Job([{}], problem=lambda reply: ""))
    for reply, number in ((deep, 0), (half, 1), (deep + half, 1)):
        questions, failed = collect([request], [[Answer(reply)]])
        assert len(questions) == number and len(failed) == 1 - number
        assert all(q.text == "what is ?" and q.complexity == 0 for q in questions)
    scores = {"query": 1, "relevance": 8, "accuracy": 8, "context_support": 8, "clarity": 8, "overall": 8}
    assert list(read_scores(deep + odd + json.dumps(scores), 2)) == [1]


SCRIPT = """
import sys, test_client
from domain_embed import attempts
from domain_embed.completion import complete
from domain_embed.responses import ResponseCache
attempts.PAUSE = 0.05
complete(test_client.server(sys.argv[1]), test_client.jobs(int(sys.argv[3])), ResponseCache(sys.argv[2]))
"""


@pytest.mark.slow
def test_twenty_kills_lose_no_reply_and_pay_none_twice(tmp_path):
    store, here, number, kills, moments = tmp_path / "replies.jsonl", Path(__file__).parent, 300, 20, random.Random(0)
    with embedded_llm() as own, FaultyProxy(own.addresses, share=0.2) as proxy:
        command, before = [sys.executable, "-c", SCRIPT, proxy.url, str(store), str(number)], {}
        for _ in range(kills):
            process = subprocess.Popen(command, cwd=here, stderr=subprocess.DEVNULL)
            wanted = len(before) + moments.randint(1, 2 * (number - len(before)) // (kills + 1))
            while not (store.exists() and store.read_bytes().count(b"\n") >= wanted):
                assert process.poll() is None, "the kill must come before the end"
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            known = ResponseCache(store).known
            assert len(known) < number and before.items() <= known.items()
            before = known
        subprocess.run(command, cwd=here, check=True, stderr=subprocess.DEVNULL)
        again = sum(times - 1 for times in (+proxy.delivered).values())  # a request that was cut off by a kill counts 0
        assert len(+proxy.delivered) == number and again <= 6 * kills  # at most what was under way when the process died
        undisturbed = complete(server(own.addresses[0]), jobs(number), ResponseCache(tmp_path / "other.jsonl"))
        assert [(a,) for (a,) in complete(server(proxy.url), jobs(number), ResponseCache(store))] == [(a,) for (a,) in undisturbed]
        print(f"{again} of {number} replies were delivered again after {kills} kills")


@pytest.mark.slow
def test_a_server_that_knows_no_schema(tmp_path):
    manual = [
        Passage(f"m#{n}", "m", "", text, language="en") for n, text in enumerate(("E17 means no water.", "Valve V3 clears E17.", "It weighs 4 kg."))
    ]
    related, prompt_style = RelatedPassages(manual, np.eye(3, dtype=np.float32)), PromptStyle("auto", 60, 0)
    with embedded_llm() as own, FaultyProxy(own.addresses, share=0, never=b"json_schema") as proxy:
        llm = replace(server(proxy.url), retries=0, timeout=60)
        cache = ResponseCache(tmp_path / "replies.jsonl")
        chosen, yields = choose_style(llm, cache, prompt_style, lambda style: plan([0, 1, 2], related, {"factual": 1}, 1, style), lambda questions: 0.4)
    assert yields["json_schema"] == 0 and chosen.style in ("json", "few_shot") and yields[chosen.style] > 0
