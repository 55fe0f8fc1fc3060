"""`corrigenda plan` tells what an edit takes without weights, a network or a GPU."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from corrigenda.cli.main import app

FACTS = {
    "rome": 1,
    "memit": 300,
    "alphaedit": 300,
    "ft-m": 300,
    "grace": 300,
    "wise": 200,
    "ike": 300,
}
PARAMETERS = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "google/gemma-2-9b": 9_241_705_984,
}
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.stdout, result.stderr


def estimate(*arguments: str) -> dict[str, object]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("model", PARAMETERS)
@pytest.mark.parametrize("method", FACTS)
def test_public_models_fit_into_24_gigabytes(model, method):
    found = estimate(model, "--method", method, "--facts", str(FACTS[method]))
    assert found["parameters"] == PARAMETERS[model]
    assert found["dtype"] == "bfloat16"
    assert found["weights"] == 2 * PARAMETERS[model]
    assert found["weights"] < found["device"] <= 24e9
    assert found["stages"]


def test_short_name_and_table_for_people():
    code, out, err = run("gemma-2-9b", "--method", "memit", "--facts", "10")
    assert (code, err) == (0, "")
    for word in ("parameters changed", "statistics", "search", "patch", "most on the device"):
        assert word in out


def test_seconds_are_counted_work_over_the_rate_given():
    slow = estimate("Qwen/Qwen2.5-7B", "--method", "ft-m", "--device-flops", "1e13")
    fast = estimate("Qwen/Qwen2.5-7B", "--method", "ft-m", "--device-flops", "1e14")
    (one,), (other,) = slow["stages"], fast["stages"]
    assert one["seconds"] == pytest.approx(one["flops"] / 1e13)
    assert other["seconds"] == pytest.approx(one["seconds"] / 10)


def test_without_a_rate_there_are_no_seconds_but_on_this_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    unknown = estimate(str(tmp_path), "--method", "ft-m")
    assert [one["seconds"] for one in unknown["stages"]] == [None]
    measured = estimate(str(tmp_path), "--method", "memit", "--device", "cpu")
    assert all(one["seconds"] > 0 for one in measured["stages"])
    assert measured["host"] == 0


def test_folder_with_a_configuration_only(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    found = estimate(str(tmp_path), "--method", "rome")
    assert found["changed"] == 32 * 80
    assert found["dtype"] == "float32"
    assert estimate(str(tmp_path), "--method", "rome", "--dtype", "bfloat16")["weights"] == (
        found["weights"] // 2
    )


def test_smaller_device_gets_smaller_batches():
    arguments = ("meta-llama/Meta-Llama-3-8B", "--method", "memit", "--facts", "1000")
    small, large = (estimate(*arguments, "--memory", size) for size in ("24", "80"))
    assert small["search"] < large["search"]
    assert large["device"] <= 80e9


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["openai/gpt-oss-20b"], "CG303"),
        (["openai/gpt-oss-20b", "--method", "wise"], "CG303"),
        (["/nowhere"], "CG301"),
        (["gemma-2-9b", "--facts", "0"], "CG502"),
        (["gemma-2-9b", "--memory", "0"], "CG502"),
        (["gemma-2-9b", "--device", "abacus"], "CG502"),
        (["gemma-2-9b", "--dtype", "int3"], "CG502"),
        (["gemma-2-9b", "--method", "rom"], "CG501"),
        (["gemma-2-9b", "--method", "rome", "--layer", "42"], "CG303"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, code, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"{code} ")


def test_quantised_configuration_needs_a_dtype(tmp_path):
    quantised = {**TINY, "quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    status, _, err = run(str(tmp_path))
    assert status == 2
    assert err.startswith("CG304 ")
    assert estimate(str(tmp_path), "--method", "rome", "--dtype", "bfloat16")["device"] > 0


def test_four_bits_take_a_fourth_of_the_matrices_of_blocks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "dtype": "bfloat16"}))
    plain = estimate(str(tmp_path), "--method", "rome")
    quantised = {**TINY, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps({**quantised, "dtype": "bfloat16"}))
    packed = estimate(str(tmp_path), "--method", "rome")
    matrices = 4 * (4 * 32 * 32 + 3 * 32 * 80)
    saved = matrices * (16 - 4 - 20 / 128) / 8
    assert plain["weights"] - packed["weights"] == pytest.approx(saved, abs=1)
    # Nothing is merged into packed weights, so no copy of one is needed.
    assert packed["device"] - packed["weights"] <= plain["device"] - plain["weights"]


@pytest.mark.parametrize("method", ["ike", "ice", "lora"])
def test_what_leaves_experts_alone_is_planned_for_gpt_oss(method):
    found = estimate("openai/gpt-oss-20b", "--method", method, "--facts", "300")
    assert found["parameters"] == pytest.approx(20.9e9, rel=0.01)
    assert 12e9 < found["weights"] < found["device"] <= 24e9
    plain = estimate("openai/gpt-oss-20b", "--method", method, "--dtype", "bfloat16")
    assert plain["weights"] == 2 * found["parameters"]
