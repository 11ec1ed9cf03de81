"""GGUF files: dequantised once into a folder that appears whole, and refused in one sentence."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from nested_reft.cli import app
from nested_reft.config.sections import ModelSource
from nested_reft.data import gguf
from nested_reft.data.gguf import prepare_gguf
from nested_reft.data.prepare import prepare_model
from nested_reft.data.prompts import format_prompt
from nested_reft.errors import UserError
from nested_reft.model.loading import end_token_ids, load_model, load_tokenizer
from nested_reft.records.files import checksum, read_json, read_rows
from tests.conftest import DATA, ROOT, needs_data

pytest.importorskip("gguf", reason="the package gguf, an extra of this package, is not installed")
from tests.data.gguf_files import LAYERS, WIDTH, write_gguf

# What `make smollm2` leaves.
SMOLLM2 = ROOT / "models/smollm2-135m-instruct"
FILES = {"config.json", "generation_config.json", "gguf.json", "model.safetensors", "tokenizer.json"}
FILES |= {"tokenizer_config.json"}


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Return the logits of a text, (T, V)."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def check_bits(file: Path, folder: Path, text: str) -> None:
    """Check that the folder gives, bit for bit, the logits of the GGUF file that transformers loads itself."""
    model, tokenizer = load_model(folder, "float32")
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ids = tokenizer(text)["input_ids"]
    assert ids == their_tokenizer(text)["input_ids"]
    assert torch.equal(logits(model, ids), logits(theirs, ids))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a GGUF file beside the folder that was made from it."""
    file = write_gguf(tmp_path_factory.mktemp("models") / "small.Q8_0.gguf")
    prepare_gguf(file, file.with_suffix(""))
    return file


def test_the_folder_has_the_logits_of_the_file_and_only_complete_files(made):
    folder = made.with_suffix("")
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == FILES
    assert {path.name for path in made.parent.iterdir()} == {made.name, folder.name}
    check_bits(made, folder, "A box holds 12 pens. How many pens are in 3 boxes?")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # safetensors would write for its owner only
    record = read_json(folder / "gguf.json")
    assert record["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert record["outputs"] == {name: checksum(folder / name) for name in FILES - {"gguf.json"}}


def test_nothing_in_the_folder_depends_on_where_or_how_it_was_made(made, tmp_path):
    other = shutil.copy(made, tmp_path / "small.Q8_0.gguf")
    prepare_gguf(Path(other), tmp_path / "elsewhere")
    for name in FILES:
        assert (tmp_path / "elsewhere" / name).read_bytes() == (made.with_suffix("") / name).read_bytes(), name
    entries = read_json(tmp_path / "elsewhere/tokenizer_config.json")
    assert not {"is_local", "local_files_only", "name_or_path"} & entries.keys()


def test_a_folder_is_made_once_and_again_if_it_or_the_file_has_changed(made, tmp_path, monkeypatch):
    file, folder = Path(shutil.copy(made, tmp_path / "x.gguf")), tmp_path / "x"
    calls = []
    save = gguf.save_dequantised
    monkeypatch.setattr(gguf, "save_dequantised", lambda *places: (calls.append(places), save(*places)))
    prepare_gguf(file, folder)
    before = checksum(folder)
    prepare_gguf(file, folder)
    assert len(calls) == 1
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    prepare_gguf(file, folder)
    assert len(calls) == 2 and checksum(folder) == before
    write_gguf(file, seed=1)
    prepare_gguf(file, folder)
    assert len(calls) == 3 and checksum(folder) != before
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.gguf"}


def test_a_process_that_is_killed_leaves_no_folder_and_the_next_one_makes_it(made, tmp_path, monkeypatch):
    file = Path(shutil.copy(made, tmp_path / "x.gguf"))
    (tmp_path / "x.part/model").mkdir(parents=True)
    (tmp_path / "x.part/model/model-00001-of-00002.safetensors").write_text("half")
    assert ModelSource(path=str(file)).local_path is None
    prepare_gguf(file, tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.gguf"}

    def fail(file: Path, architecture: str, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "save_dequantised", fail)
    with pytest.raises(OSError, match="No space left"):
        prepare_gguf(file, tmp_path / "y")
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.gguf"}


def test_a_study_notes_the_folder_with_its_shape_and_checksum(made, tmp_path):
    file = Path(shutil.copy(made, tmp_path / "x.gguf"))
    source = ModelSource(path=str(file))
    assert source.local_path is None and source.shape == {}
    prepare_model(source, tmp_path / "model.json")
    folder = tmp_path / "x"
    assert source.local_path == folder and source.shape["num_hidden_layers"] == LAYERS
    note = {"path": str(folder), "num_layers": LAYERS, "width": WIDTH, "sha256": checksum(folder)}
    assert read_json(tmp_path / "model.json") == note


def test_the_end_of_a_text_is_the_padding_and_ends_a_completion(made):
    model, tokenizer = load_model(made.with_suffix(""), "float32")
    assert end_token_ids(model, tokenizer) == (tokenizer.eos_token_id,) == (tokenizer.pad_token_id,)
    text = "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def truncated_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def truncated_weights(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def text(file: Path) -> None:
    file.write_text("<html>not found</html>")


def unsupported(file: Path) -> None:
    write_gguf(file, architecture="rwkv6")


def old_version(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4] = 1  # the version
    file.write_bytes(content)


MISTAKES = {
    truncated_header: "is cut off, or of a kind of GGUF that transformers does not read",
    truncated_weights: r"is cut off: it has [\d,]+ of [\d,]+ bytes; download it again",
    text: "is not a GGUF file, because it does not begin with GGUF",
    unsupported: "has the architecture 'rwkv6', and transformers .* cannot read it from GGUF",
    old_version: "GGUF v1; this reader handles v2 and v3",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_file_that_cannot_be_read_is_one_sentence_and_nothing_is_written(mistake, made, tmp_path):
    file = Path(shutil.copy(made, tmp_path / "x.gguf"))
    mistake(file)
    with pytest.raises(UserError, match=MISTAKES[mistake]) as error:
        prepare_model(ModelSource(path=str(file)), tmp_path / "model.json")
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_the_missing_package_is_named(made, monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is read with the package gguf, .*`pip install \.\[gguf\]`"):
        gguf.read_header(made)


def test_a_folder_of_something_else_and_one_without_permission_stay_as_they_are(made, tmp_path, monkeypatch):
    file = Path(shutil.copy(made, tmp_path / "x.gguf"))
    monkeypatch.setattr(gguf.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="x cannot be written for lack of permission; run `nested-reft prepare gguf"):
        prepare_gguf(file, tmp_path / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="x exists and was not made from a GGUF file; move it, or run"):
        prepare_gguf(file, tmp_path / "x")
    assert not list((tmp_path / "x").iterdir())


def test_the_command_line_makes_the_folder_that_the_other_commands_ask_for(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(made, "x.gguf")
    run = CliRunner().invoke
    for command in (["layers", "x.gguf"], ["bench", "rollout", "x.gguf"]):
        with pytest.raises(
            UserError, match=r"x\.gguf is a GGUF file and not .*; run `nested-reft prepare gguf x\.gguf`"
        ):
            run(app, command, catch_exceptions=False)
    assert run(app, ["prepare", "gguf", "x.gguf"]).stdout.splitlines()[-1] == "x"
    for path in ("x", "x.gguf"):
        assert "N = 4 layers" in run(app, ["layers", path, "--skip-ratios", "0.3"]).stdout
    sampled = run(app, ["sample", "x", "--problem", "1 + 1?", "--max-new-tokens", "4"])
    assert sampled.exit_code == 0 and "no answer in a box" in sampled.stdout, sampled.output


needs_smollm2 = pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"`make smollm2` has not written {SMOLLM2}")


@pytest.mark.slow
@pytest.mark.nightly
@needs_smollm2
def test_smollm2_has_the_logits_of_its_gguf_file_and_ends_its_texts():
    """The small twin is `test_the_folder_has_the_logits_of_the_file_and_only_complete_files`."""
    check_bits(SMOLLM2.with_suffix(".gguf"), SMOLLM2, "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n")
    model, tokenizer = load_model(SMOLLM2, "float32")
    assert tokenizer.convert_ids_to_tokens(end_token_ids(model, tokenizer)) == ["<|im_end|>"]
    problem = "Tom has 3 boxes with 12 pens each. How many pens does he have?"
    prompt = tokenizer(format_prompt(problem, "qwen-math"), return_tensors="pt")
    completion = model.generate(**prompt, do_sample=False, max_new_tokens=300)[0, prompt["input_ids"].shape[1] :]
    assert len(completion) < 300 and tokenizer.decode(completion).endswith("<|im_end|>")


@needs_smollm2
@needs_data
def test_the_tokenizer_of_smollm2_gives_real_problems_back():
    tokenizer = load_tokenizer(SMOLLM2)
    gsm8k = read_rows(DATA / "gsm8k/test.jsonl")[:1000]
    svamp = read_json(DATA / "svamp/SVAMP.json")
    texts = [row[key] for row in gsm8k for key in ("question", "answer")]
    texts += [f"{row['Body']} {row['Question']}" for row in svamp]
    assert len(texts) == 3000
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts
