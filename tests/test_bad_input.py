"""Whatever is wrong with what a user gives: one clear line, exit status 2, and nothing that was made is lost."""

import http.server
import shutil
import threading

import pytest
from conftest import assert_refused, domain_embed, run_here, set_options

from domain_embed.manifests import read_manifest
from domain_embed.runs import InputError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def generate(folder, tmp_path, *settings, **environment):
    return domain_embed("generate", "--documents", folder, *set_options(*settings), tmp_path / "run", **environment)


# the first test of all: one process makes the shared run while the other does the tests that need none
def test_nothing_is_lost(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    before = read_manifest(run_dir, "generate")
    done = domain_embed("generate", "--set", "generate.llm=m", "--set", "generate.llm_api_key_env=NO_KEY", run_dir)
    assert_refused(done, "NO_KEY is not set")
    assert read_manifest(run_dir, "generate") == before
    assert "nothing has changed, skipped" in domain_embed("generate", run_dir).stdout  # what was refused is not remembered


def test_documents_that_cannot_be_used(folder, tmp_path):
    def refused(*words):
        with pytest.raises(InputError) as error:
            run_here("generate", tmp_path / "run", f"generate.documents={folder}")
        assert all(word in str(error.value) for word in words), error.value

    refused(f"no documents found in {folder}", ".md .markdown .txt", ".pdf")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n")
    refused(f"no documents found in {folder}")
    (folder / "a.txt").symlink_to(tmp_path / "gone.txt")
    refused("hold no text that can be used; a.png is of a type that is not read (.png)", "a.txt cannot be read (No such file or directory)")
    (folder / "a.txt").unlink()
    (folder / "a").write_bytes(bytes(range(256)) * 40)
    refused("a has no suffix and is not plain text")
    (folder / "a").write_bytes(b"word " * 10_000_000)
    refused("a has 50 MB, more than the 10 MB")


def test_an_empty_folder_on_the_command_line(folder, tmp_path):
    assert_refused(generate(folder, tmp_path), f"no documents found in {folder}", ".md .markdown .txt", ".pdf")


def test_a_missing_path(tmp_path):
    assert_refused(generate(tmp_path / "nowhere", tmp_path), "nowhere: there is no such file or folder")


def test_a_wrong_key_in_a_profile(folder, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("finetune:\n  learning_rat: 1e-5\n")
    done = domain_embed("run", "--documents", folder, "--profile", profile, tmp_path / "run")
    assert_refused(done, str(profile), "no parameter 'learning_rat'", "did you mean 'learning_rate'?")


def test_an_unreachable_llm(documents, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    settings = ("generate.llm=m", "generate.llm_base_url=http://127.0.0.1:9/v1", "generate.llm_retries=0")
    with pytest.raises(InputError, match=r"no LLM answers at http://127\.0\.0\.1:9/v1/"):
        run_here("generate", tmp_path / "run", f"generate.documents={documents}", *settings)


def test_a_missing_api_key(documents, tmp_path):
    with pytest.raises(InputError, match="NO_KEY is not set"):
        run_here("generate", tmp_path / "run", f"generate.documents={documents}", "generate.llm=m", "generate.llm_api_key_env=NO_KEY")


def test_a_wrong_api_key_is_refused_and_never_written(documents, tmp_path, monkeypatch, capfd):
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # repeats the key, as a careless server might
            body = f'{{"error": {{"message": "bad key {self.headers["Authorization"]}"}}}}'.encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = ("generate.llm=m", f"generate.llm_base_url=http://127.0.0.1:{server.server_port}/v1")
    with pytest.raises(InputError) as error:
        run_here("generate", tmp_path / "run", f"generate.documents={documents}", *settings)
    server.shutdown()
    assert "refuses the key in $OPENAI_API_KEY (HTTP 401)" in str(error.value)
    written = [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-very-secret" in p.read_bytes()]
    assert not written and "sk-very-secret" not in str(error.value) + "".join(capfd.readouterr())


def test_secrets_in_the_wrong_place_are_refused_and_never_written(documents, tmp_path):
    for setting in ("generate.llm_base_url=https://me:sk-very-secret@host/v1", "generate.llm_api_key_env=sk-very-secret"):
        done = generate(documents, tmp_path, setting)
        assert_refused(done, "--set generate.llm_")
        assert "sk-very-secret" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


def test_a_test_set_that_cannot_be_read_is_found_before_anything_is_done(documents, tmp_path):
    done = domain_embed("run", "--documents", documents, "--set", f"evaluate.test_set={documents}", tmp_path / "run")
    assert_refused(done, f"{documents}/corpus.jsonl is missing")
    assert not (tmp_path / "run").exists()


def test_a_stage_without_the_one_before_it(tmp_path):
    assert_refused(domain_embed("finetune", tmp_path / "run"), "run `domain-embed prepare")
    assert_refused(domain_embed("finetune", tmp_path / "run", "--sweep", "seeds=1,2"), "'seeds=1,2': expected name=value,value")
