"""A mirror is filled from a small server in place of the hub, and what was interrupted is continued."""

import os
import time
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi

from nested_reft.config.mirror import read_manifest
from nested_reft.config.parse import parse_settings
from nested_reft.config.sections import BenchmarkSource, DatasetSource
from nested_reft.config.study import Study
from nested_reft.data.fetch import Entry, entries_of, fetch_entry
from nested_reft.data.sources import load_rows
from nested_reft.errors import UserError
from tests.config.studies import changed, load
from tests.conftest import TINY, run, start
from tests.data.hub import commit_of, hub
from tests.data.rows import math

SUMS = {
    "README.md": b"---\nconfigs:\n- config_name: main\n  data_files:\n"
    b"  - {split: train, path: main/train-*}\n  - {split: test, path: main/test-*}\n---\n",
    "main/train-0.jsonl": b'{"problem": "p", "solution": "It is one.", "answer": "1"}\n',
    "main/test-0.jsonl": b'{"problem": "q", "answer": "1"}\n',
}


def test_each_model_and_dataset_of_the_hub_is_fetched_once():
    paper = entries_of(parse_settings(Study, load("paper.yaml")))
    assert paper == [
        Entry("model", "Qwen/Qwen2.5-Math-1.5B-Instruct", None),
        Entry("model", "Qwen/Qwen2.5-Math-7B-Instruct", None),
        Entry("dataset", "ChilleD/SVAMP", None),
        Entry("dataset", "openai/gsm8k", None),
        Entry("dataset", "nlile/hendrycks-MATH-benchmark", None),
        Entry("dataset", "lkevinzc/math-eval", None),
    ]
    assert entries_of(parse_settings(Study, load("config.yaml"))) == []
    twice = changed("datasets.mixed", {"path": "owner/name", "revision": "v1"})
    twice["benchmarks"]["algebra"] = {"path": "owner/name", "revision": "v2"}
    with pytest.raises(
        UserError, match="uses owner/name as dataset at revision v1 and as dataset at revision v2, but"
    ):
        entries_of(parse_settings(Study, twice))


def test_what_is_there_is_not_fetched_again_and_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "owner/name").mkdir(parents=True)
    entry = Entry("dataset", "owner/name", None)
    assert fetch_entry(entry, tmp_path) == "is there already"
    with pytest.raises(
        UserError, match="owner/name at another revision than v1; remove that folder, and run the same"
    ):
        fetch_entry(entry._replace(revision="v1"), tmp_path)
    (tmp_path / "owner/name/.mirror.json").write_text('{"kind": "model", "revision": "v1"}')
    with pytest.raises(UserError, match="owner/name as a model, not as a dataset; use another mirror"):
        fetch_entry(entry, tmp_path)
    with pytest.raises(UserError, match=r"could not fetch the model 'owner/none' from the hub \(OfflineModeIsEnabled"):
        fetch_entry(Entry("model", "owner/none", None), tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="lacks owner/none and cannot be written to; change its permissions"):
        fetch_entry(Entry("model", "owner/none", None), tmp_path)
    assert [path.name for path in (tmp_path / "owner").iterdir()] == ["name"]


def test_the_second_of_two_fetches_at_once_waits_and_takes_what_the_first_wrote(tmp_path, monkeypatch):
    entry, answers = Entry("dataset", "owner/sums", None), []
    second = Thread(target=lambda: answers.append(fetch_entry(entry, tmp_path)))

    def download(name, local_dir, **others):
        (local_dir / ".cache").mkdir(parents=True, exist_ok=True)
        if second.ident is None:
            second.start()
            second.join(0.5)  # it would finish in this time if it did not wait
        (local_dir / "README.md").write_bytes(SUMS["README.md"])

    monkeypatch.setattr(HfApi, "repo_info", lambda *named, **others: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_cached_repo_tree", lambda *named, **others: [])
    assert fetch_entry(entry, tmp_path) == "fetched, 0.0 MB, commit 000000000000"
    second.join()
    assert answers == ["is there already"]
    assert [path.name for path in (tmp_path / "owner").iterdir()] == ["sums"]
    assert sorted(path.name for path in (tmp_path / "owner/sums").iterdir()) == [".mirror.json", "README.md"]


@pytest.mark.slow
def test_a_killed_fetch_leaves_nothing_that_is_read_and_is_continued(tmp_path, monkeypatch):
    study = load("smoke.yaml") | {"mirror": "mirror"}
    study["models"]["tiny-28"] = {"path": "owner/tiny", "revision": "v1"}
    study["datasets"]["mixed"] = {"path": "owner/sums", "config_name": "main"}
    study["benchmarks"] = {"sums": {"path": "owner/sums", "config_name": "main"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    tiny = {path.name: path.read_bytes() for path in TINY.iterdir()}
    withheld = {"model.safetensors"}
    command = ("nested-reft", "fetch", "mine.yaml")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    mirror = tmp_path / "mirror"
    with hub({"owner/tiny": tiny, "datasets/owner/sums": SUMS}, withheld) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        process = start(*command, cwd=tmp_path)
        while process.poll() is None and not list(mirror.glob("owner/.tiny.*.part/config.json")):
            time.sleep(0.05)
        process.kill()
        process.communicate()
        assert not (mirror / "owner/tiny").exists()

        withheld.clear()
        fetched = run(*command, cwd=tmp_path)
        assert fetched.returncode == 0, fetched.stderr
        assert f"[1/2] model owner/tiny fetched, 6.7 MB, commit {commit_of(tiny)[:12]}\n" in fetched.stdout
        assert "[2/2] dataset owner/sums fetched" in fetched.stdout
    assert sorted(path.name for path in (mirror / "owner").iterdir()) == ["sums", "tiny"]
    assert (mirror / "owner/tiny/model.safetensors").read_bytes() == tiny["model.safetensors"]
    assert not (mirror / "owner/tiny/loss.svg").exists()  # not a file of a model
    expected = {"kind": "model", "path": "owner/tiny", "revision": "v1", "commit": commit_of(tiny)}
    assert read_manifest(mirror / "owner/tiny") == expected
    os.environ["NESTED_REFT_MIRROR"] = str(mirror)
    assert load_rows(DatasetSource(path="owner/sums", config_name="main")) == [math("p")]
    assert [row["problem"] for row in load_rows(BenchmarkSource(path="owner/sums", config_name="main"))] == ["q"]
