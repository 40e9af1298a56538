"""Stage 2 on pairs of all kinds: what it keeps apart, what it hands over, and whom it obeys."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from beir.datasets.data_loader import GenericDataLoader
from conftest import run_here

from domain_embed.automodel_format import read_training
from domain_embed.batches import label_batch, plan_batches
from domain_embed.beir import Passage, Question, read_beir, read_passages, read_questions, write_beir, write_questions
from domain_embed.encode import encode, process_pool
from domain_embed.models import load_model
from domain_embed.runs import InputError

PARTS = (
    "pump",
    "valve",
    "motor",
    "sensor",
    "filter",
    "gasket",
    "boiler",
    "fan",
    "belt",
    "pipe",
    "tank",
    "gauge",
    "relay",
    "bearing",
    "clutch",
    "hose",
)
ASKED = ("how is the {} cleaned", "{} service interval", "weight of the {}")
TEXTS = (
    "The {0} is cleaned with warm water and a soft brush, never with a solvent; afterwards the {0} dries for two hours before it is used again.",
    "Every {1} months the {0} is serviced by two people, who change its seals and write the date and the hours of work on its plate.",
    "A {0} weighs {1} kilograms and is lifted by a crane with two slings, one at each end, while nobody stands under the load.",
)


@pytest.fixture
def pairs(tmp_path):
    "A BEIR folder: 16 documents of 3 passages, a question each; the belt's first passage stands in the fan's document too, and one question needs two documents."
    passages = [Passage(f"{part}#{n}", part, "", text.format(part, 7 * i + n)) for i, part in enumerate(PARTS) for n, text in enumerate(TEXTS)]
    passages.append(Passage("fan#3", "fan", "", TEXTS[0].format("belt", "")))
    questions = [Question(f"{part}-{n}", q.format(part), "factual", [f"{part}#{n}"], part) for part in PARTS for n, q in enumerate(ASKED)]
    questions.append(Question("both", "are hose and clutch cleaned alike", "multi_hop", ["hose#0", "clutch#0"], "hose"))
    return write_beir(tmp_path / "pairs", passages, questions, {"all": [q.id for q in questions]})


def prepare(run_dir, folder, *settings):
    return run_here(
        "prepare", run_dir, f"prepare.pairs={folder}", "prepare.range_max=20", "prepare.test_fraction=0.2", "prepare.num_negatives=5", *(f"prepare.{s}" for s in settings)
    )


def sides(run_dir):
    "Documents of each side: what training reads, and what is held out."
    folder = run_dir / "2_prepare"
    document = {p.id: p.document for p in read_passages(folder / "eval_beir/corpus.jsonl")}
    rows, _ = read_training(folder / "train.json")
    held_out = {s: {document[p] for judged in read_beir(folder / "eval_beir", s).qrels.values() for p in judged} for s in ("dev", "test")}
    return {document[p] for r in rows for p in (r.positive, *(n for n, _ in r.negatives))}, held_out


def passages_of(run_dir):
    "Passages that training reads, and those that are judged in validation and test."
    folder = run_dir / "2_prepare"
    rows, _ = read_training(folder / "train.json")
    judged = {p for s in ("dev", "test") for found in read_beir(folder / "eval_beir", s).qrels.values() for p in found}
    return {p for r in rows for p in (r.positive, *(n for n, _ in r.negatives))}, judged


def test_documents_twins_and_groups_stay_on_one_side(pairs, tmp_path):
    groups = tmp_path / "groups.tsv"
    groups.write_text("pump\tline 1\nvalve\tline 1\nmotor\tline 1\n")
    for seed in (1, 2, 3):
        manifest = prepare(tmp_path / "run", pairs, f"seed={seed}", f"groups={groups}", "max_leak=1")
        train, held_out = sides(tmp_path / "run")
        assert not train & (held_out["dev"] | held_out["test"]) and not held_out["dev"] & held_out["test"]
        line = {"pump", "valve", "motor"}
        assert sum(bool(line & side) for side in (train, held_out["dev"], held_out["test"])) <= 1
        twins, both = {"belt#0", "fan#3"}, {"hose#0", "clutch#0"}
        read, judged = passages_of(tmp_path / "run")
        assert not (twins & read and {"belt", "fan"} & (held_out["dev"] | held_out["test"]))
        separated = bool(both & read and both & judged)
        assert separated == ("its passages, or their near duplicates, are on two sides" in manifest["metrics"]["left_out"])
        assert "near duplicate" not in manifest["metrics"]["leaks"]


def test_what_is_written_agrees_with_itself_and_beir_reads_it(pairs, tmp_path):
    metrics = prepare(tmp_path / "run", pairs, "max_leak=1", "max_positive_fraction=0.6")["metrics"]
    folder = tmp_path / "run/2_prepare"
    scores = pd.read_parquet(folder / "scores.parquet")
    kept = {(q, c) for q, c in scores[scores["verdict"] == "kept"][["query", "candidate"]].itertuples(index=False)}
    content = json.loads((folder / "train.json").read_text())["data"]
    assert (
        kept == {(r["question_id"].rpartition("_")[0], n["id"]) for r in content for n in r["neg_doc"]} and len(kept) == metrics["candidates"]["kept"]
    )
    likely = [json.loads(line) for line in (folder / "likely_positives.jsonl").read_text().splitlines()]
    assert len(likely) == (scores["verdict"] == "above the threshold").sum() > 0 and likely == sorted(likely, key=lambda r: -r["score_ratio"])
    for row in content:
        assert not {n["id"] for n in row["neg_doc"]} & {m["id"] for m in (*row["masked_doc"], *row["pos_doc"])}
    corpus, queries, qrels = GenericDataLoader(str(folder / "eval_beir")).load("test")
    assert len(corpus) == 49 and queries.keys() == qrels.keys() and len(qrels) == metrics["questions"]["test"]


def test_a_frozen_test_is_handed_from_run_to_run(pairs, tmp_path):
    first = prepare(tmp_path / "first", pairs, "max_leak=1")["metrics"]
    frozen = tmp_path / "first/2_prepare/eval_beir"
    second = prepare(tmp_path / "second", pairs, f"frozen_test={frozen}", "seed=7", "max_leak=1")["metrics"]
    assert second["test_sha256"] == first["test_sha256"] and second["questions"]["test"] == first["questions"]["test"]
    train, held_out = sides(tmp_path / "second")
    assert held_out["test"] == sides(tmp_path / "first")[1]["test"] and not train & held_out["test"]
    with (frozen / "qrels/test.tsv").open("a") as file:
        file.write("pump-1\tpump#1\t1\n")
    with pytest.raises(InputError, match=r"its test has changed since it was made"):
        prepare(tmp_path / "third", pairs, f"frozen_test={frozen}", "max_leak=1")


def test_a_test_that_is_set_aside_stays_so_with_its_grades(pairs, tmp_path):
    lines = (pairs / "qrels/all.tsv").read_text().splitlines(keepends=True)
    (pairs / "qrels/all.tsv").unlink()
    graded = ["tank-0\ttank#0\t2\n", "tank-0\tpump#0\t0\n", "tank-1\ttank#1\t0\n"]
    (pairs / "qrels/test.tsv").write_text(lines[0] + "".join(graded))
    rest = [line for line in lines[1:] if not line.startswith("tank")]
    (pairs / "qrels/train.tsv").write_text(lines[0] + "".join(rest[:20]))
    (pairs / "qrels/more.tsv").write_text(lines[0] + "".join(rest[19:]) + "pump-0\tvalve#0\t1\n")  # one line twice, one query with an answer more
    prepare(tmp_path / "run", pairs, "max_leak=1")
    folder = tmp_path / "run/2_prepare/eval_beir"
    assert read_beir(folder, "test").qrels == {"tank-0": {"tank#0": 2, "pump#0": 0}}
    found = read_beir(folder, "train").qrels | read_beir(folder, "dev").qrels
    assert found.get("pump-0", {}).keys() in ({"pump#0", "valve#0"}, set()) and not {q for q in found if q.startswith("tank")}
    assert not sides(tmp_path / "run")[0] & {"tank"}


@pytest.mark.slow
def test_two_processes_give_the_same_vectors():
    model, texts = load_model("embedded", 64), [f"{part} number {n}" for n, part in enumerate(PARTS)]
    with process_pool(model, ["cpu", "cpu"]) as pool:
        together = encode(model, texts, "query", pool=pool)
    assert np.allclose(together, encode(model, texts, "query"), atol=1e-6)


def test_settings_that_cannot_be_meant(pairs, tmp_path):
    for wrong, why in (
        ("range_min=20", "leaves none of prepare.range_max = 20"),
        (("sampling_strategy=random", "sampling_pool=2"), "less than prepare.num_negatives = 5"),
        ("groups=/none", "/none does not exist"),
        ("frozen_test=/none", "/none/corpus.jsonl is missing"),
        ("pairs=/none", "/none does not exist"),
    ):
        with pytest.raises(InputError, match=why):
            prepare(tmp_path / "run", pairs, *([wrong] if isinstance(wrong, str) else wrong))


def test_marks_are_obeyed_and_move_nothing_else(pairs, tmp_path):
    run = tmp_path / "run"
    settings = ("max_leak=1", "max_positive_fraction=0.6")
    before = prepare(run, pairs, *settings)["metrics"]
    scores = pd.read_parquet(run / "2_prepare/scores.parquet")
    false, relevant = (scores[scores["verdict"] == v].iloc[0] for v in ("kept", "above the threshold"))
    marks = [{"query": r["query"], "candidate": r["candidate"], "mark": m} for r, m in ((false, "false"), (relevant, "relevant"))]
    (run / "marks.jsonl").write_text("".join(json.dumps(m) + "\n" for m in marks))
    after = prepare(run, pairs, *settings)["metrics"]
    assert after["test_sha256"] == before["test_sha256"] and after["questions"] == before["questions"] and after["marks"] == 2
    rows, _ = read_training(run / "2_prepare/train.json")
    assert not any(r.id.startswith(f"{false['query']}_") and false["candidate"] in dict(r.negatives) for r in rows)
    assert any(r.id.startswith(f"{relevant['query']}_") and r.positive == relevant["candidate"] for r in rows)


def ask_alike(pairs, number):
    "The same words in some of the questions about every document."
    text = (pairs / "queries.jsonl").read_text()
    for part in PARTS:
        for question in ASKED[:number]:
            text = text.replace(question.format(part), f"how is it, {ASKED.index(question)}")
    (pairs / "queries.jsonl").write_text(text)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_test_and_training_have_in_common_is_taken_out(pairs, tmp_path, frozen):
    ask_alike(pairs, 1)
    settings = ["max_leak=1"]
    if frozen:
        prepare(tmp_path / "first", pairs, "max_leak=1")
        settings = [f"frozen_test={tmp_path}/first/2_prepare/eval_beir", "seed=7"]
    before = prepare(tmp_path / "run", pairs, *settings, "max_leak=1")["metrics"]
    after = prepare(tmp_path / "run", pairs, *settings, "max_leak=0")["metrics"]
    folder = tmp_path / "run/2_prepare"
    test, train = read_beir(folder / "eval_beir", "test"), read_beir(folder / "eval_beir", "train")
    assert before["leaks"]["same question"] > 2 and not set(test.queries.values()) & set(train.queries.values())
    removed = after["taken_out"]
    assert after["questions"]["test"] == before["questions"]["test"] - removed["test questions"]
    assert after["questions"]["train"] == before["questions"]["train"] - removed["training questions"]
    assert removed["test questions"] + removed["training questions"] > 0 and (removed["test questions"] == 0 or not frozen)
    rows, _ = read_training(folder / "train.json")
    assert {r.question for r in rows} == set(train.queries)


def test_more_equal_questions_than_a_search_looks_at_are_all_taken_out(pairs, tmp_path):
    found = read_beir(pairs, "all")
    passages = read_passages(pairs / "corpus.jsonl")
    same = [Question(f"same-{n}-{part}", "how is it cleaned", "factual", [f"{part}#0"], part) for n in range(9) for part in PARTS[:15]]
    other = [Question(q, text, "factual", list(found.qrels[q]), "") for q, text in found.queries.items() if not q.startswith("tank")]
    folder = write_beir(tmp_path / "many", passages, [*same, *other], {"all": [q.id for q in (*same, *other)]})
    frozen = write_beir(tmp_path / "frozen", passages, [Question("new", "how is it cleaned", "factual", ["tank#0"], "tank")], {"test": ["new"]})
    metrics = prepare(tmp_path / "run", folder, f"frozen_test={frozen}", "max_leak=0", "val_fraction=0", "max_positives=9")["metrics"]
    texts = set(read_beir(tmp_path / "run/2_prepare/eval_beir", "train").queries.values())
    assert metrics["leaking_fraction_left"] == 0 and metrics["taken_out"]["training questions"] > 100 and "how is it cleaned" not in texts


def test_questions_that_fail_the_round_trip_are_tested_and_not_trained_on(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    questions = read_questions(run_dir / "1_generate/questions.jsonl")
    lost = {q.id for q in questions[::2]}
    write_questions(run_dir / "1_generate/questions.jsonl", [replace(q, round_trip=q.id not in lost) for q in questions])
    metrics = run_here("prepare", run_dir, "prepare.test_fraction=0.4")["metrics"]
    sets = {side: read_beir(run_dir / "2_prepare/eval_beir", side).qrels.keys() for side in ("train", "test")}
    assert lost & sets["test"] and not lost & sets["train"] and metrics["test_fails_round_trip"] == len(lost & sets["test"])
    evaluated = [run_here(stage, run_dir, "prepare.test_fraction=0.4")["metrics"] for stage in ("finetune", "evaluate")][1]
    sides = evaluated["sets"]["generated"]["round_trip"]
    assert sides["fails"]["queries"] == len(lost & sets["test"]) and sides["succeeds"]["queries"] == len(sets["test"] - lost)


def test_the_threshold_decides_what_is_trained_on(pairs, tmp_path):
    trained = {}
    for fraction, others in (("0.95", ()), ("0.5", ()), ("0.95", ("range_min=4",)), ("0.95", ("exclude_adjacent=1",)), ("0.95", ("num_negatives=2",)), ("0.95", ("sampling_strategy=random", "sampling_pool=9"))):
        prepare(tmp_path / "run", pairs, "max_leak=1", f"max_positive_fraction={fraction}", *others)
        rows, texts = read_training(tmp_path / "run/2_prepare/train.json")
        plan = plan_batches(rows, dict.fromkeys(texts, 1), 4, 0, 8, 1, seed=0)
        batches = [(sorted((e.row.id, e.negatives) for e in batch), label_batch(batch, {})[1].tolist()) for batch in plan]
        trained[fraction, others] = ([(r.id, r.negatives, r.masked) for r in rows], batches)
    first, *changed = trained.values()
    assert all(rows != first[0] and batches != first[1] for rows, batches in changed)


def test_a_passage_that_holds_a_test_passage_is_no_negative(pairs, tmp_path):
    passages = read_passages(pairs / "corpus.jsonl")
    prepare(tmp_path / "run", pairs, "max_leak=1")
    document = {p.id: p.document for p in passages}
    held_out = next(iter(read_beir(tmp_path / "run/2_prepare/eval_beir", "test").qrels.values()))
    copied = {p.id: p.text for p in passages}[min(held_out)]
    trained = min(sides(tmp_path / "run")[0])
    filler = " ".join(f"word{n}" for n in range(40))
    passages.append(Passage(f"{trained}#9", trained, "", f"{filler} {copied}"))
    with (pairs / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": f"{trained}#9", "text": passages[-1].text, "metadata": {"document": trained}}) + "\n")
    metrics = prepare(tmp_path / "run", pairs, "max_positive_fraction=1")["metrics"]
    rows, _ = read_training(tmp_path / "run/2_prepare/train.json")
    assert metrics["leaks"]["shared words"] >= 1 and metrics["taken_out"]["passages"] >= 1 and document[min(held_out)] != trained
    assert not any(f"{trained}#9" in dict(r.negatives) for r in rows)


def test_a_test_that_could_show_nothing_without_its_leaks_is_refused(pairs, tmp_path):
    ask_alike(pairs, 3)
    frozen = write_beir(tmp_path / "frozen", read_passages(pairs / "corpus.jsonl"), [Question("new", "how is it, 0", "factual", ["tank#0"], "tank")], {"test": ["new"]})
    lines = (pairs / "queries.jsonl").read_text().splitlines()
    same = [json.dumps(json.loads(line) | {"text": "how is it, 0"}) for line in lines]
    (pairs / "queries.jsonl").write_text("\n".join(same))
    with pytest.raises(InputError, match=r"100% of 1 test questions have something in common with training .*same question 1.00.* 0 training questions are left"):
        prepare(tmp_path / "run", pairs, f"frozen_test={frozen}")
    assert not (tmp_path / "run/2_prepare").exists()


def test_bm25_a_second_encoder_samples_and_lines(pairs, tmp_path):
    lines = tmp_path / "log.tsv"
    passages = {p.id: p.text for p in read_passages(pairs / "corpus.jsonl")}
    found = read_beir(pairs, "all")
    lines.write_text("".join(f"{found.queries[q]}\t{passages[p]}\n" for q, judged in found.qrels.items() for p in judged))
    more = ("fuse_bm25=always", "ensemble_models=[embedded]", "sampling_strategy=random", "sampling_pool=8", "absolute_margin=0.01", "exclude_adjacent=1", "relabel_threshold=1.0", "max_leak=1")
    metrics = prepare(tmp_path / "run", lines, *more)["metrics"]
    assert sum(metrics["questions"].values()) > 40 and metrics["candidates"]["kept"] > 50
    with pytest.raises(InputError, match=r"cannot load the cross-encoder '/none'"):
        prepare(tmp_path / "other", lines, "cross_encoder=/none", "max_leak=1")
