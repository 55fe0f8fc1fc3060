"""`cg.export`: what it composes, refuses, compresses, measures, and says on the card."""

import json

import pytest
import torch
from transformers import AutoTokenizer

import corrigenda as cg
from corrigenda.engines.pocket_world import add_related_prompts
from corrigenda.errors import BadConfig, NotExportable, WrongBase
from corrigenda.exports.forms import Form
from corrigenda.exports.shards import find_shards
from corrigenda.exports.shrink import shrink
from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, WeightPatch, header_for, load_patch

FACT = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")


@pytest.fixture(scope="module")
def pocket():
    return cg.load("pocket")


@pytest.fixture(scope="module")
def edit(pocket):
    """An edit of one fact, its change as it is."""
    return cg.edit(pocket, FACT, "rome")


def with_facts(patch, lm, changes):
    return WeightPatch(changes, patch.header.model_copy(update={"base_digest": lm.digest()}))


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_card_lies_in_the_folder(to, pocket, edit, tmp_path):
    cg.export(edit, pocket, tmp_path / "out", to=to)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["form"] == to
    assert card["base"] == {"name": "pocket", "digest": pocket.digest(), "gguf": None}
    assert card["patch"]["method"] == "rome"
    assert card["patch"]["digest"] == edit.digest()
    own, *others = card["facts"][0]["answers"]
    assert (own["before"], own["after"]) == ("Paris", "Rome")
    assert {one["role"] for one in others} == {"paraphrase", "neighbour", "same subject"}
    assert card["measured"]["efficacy"] == 1.0
    assert {one["name"] for one in card["files"]} == {
        path.name for path in (tmp_path / "out").iterdir()
    } - {"README.md", "card.json"}
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("## Facts", "## Measured", "## Load", "## Undo", "## Licence", "Rome", "vllm"):
        assert part in text
    assert card["undo"] in text


def test_files_have_their_card_next_to_them(pocket, edit, tmp_path):
    pytest.importorskip("gguf", reason="GGUF files are written by gguf")
    cg.export(edit, pocket, tmp_path / "rome.gguf", to="gguf-adapter")
    cg.export(edit, pocket, tmp_path / "folder", to="gguf", weight_type="q8_0")
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        *("folder", "rome.card.json", "rome.gguf", "rome.md")
    ]
    names = sorted(one.name for one in (tmp_path / "folder").iterdir())
    assert names == ["README.md", "card.json", "model.gguf"]
    card = json.loads((tmp_path / "folder" / "card.json").read_text())
    assert "ollama create" in card["load"]["Ollama"]


def test_text_of_facts_has_no_effect_in_a_card(llama, make_patch, tmp_path):
    patch = make_patch(llama, "1.mlp.down")
    fact = {"prompt": "<b>The | `capital`\nof", "target": "*Rome*"}
    header = patch.header.model_copy(update={"facts": (fact,)})
    cg.export(WeightPatch(patch.changes, header), llama, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "<b>" not in text
    assert "&lt;b>The \\| \\`capital\\` of" in text


def test_several_patches_become_one_adapter(llama, make_patch, tmp_path):
    one, two = make_patch(llama, "1.mlp.down", seed=1), make_patch(llama, "2.mlp.down", seed=2)
    cg.export([one, two], llama, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1, 2]
    assert json.loads((tmp_path / "card.json").read_text())["measured"] is None


@pytest.mark.parametrize("to", Form)
def test_memories_and_contexts_are_named_with_what_serves_them(to, pocket, edit, tmp_path):
    context = cg.edit(pocket, FACT, "ice")
    for patch in (context, edit + context, [edit, context]):
        with pytest.raises(NotExportable, match=r"CG405[\s\S]*corrigenda serve MODEL --patch"):
            cg.export(patch, pocket, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_options_of_other_forms_are_refused(llama, make_patch, tmp_path):
    patch = make_patch(llama, "1.mlp.down")
    for options in (
        {"to": "peft", "base": "x.gguf"},
        {"to": "merged", "weight_type": "q8_0"},
        {"to": "merged", "padded": False},
        {"to": "gguf", "weight_type": "q4_k_m"},
        {"to": "onnx"},
    ):
        with pytest.raises(BadConfig, match="CG502"):
            cg.export(patch, llama, tmp_path / "out", **options)
    empty = WeightPatch({}, header_for(llama, method="none"))
    for nothing in (empty, []):
        with pytest.raises(NotExportable, match="empty"):
            cg.export(nothing, llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", Form)
def test_another_model_needs_force(to, llama, make_patch, tmp_path):
    if to.startswith("gguf"):
        pytest.importorskip("gguf", reason="GGUF files are written by gguf")
    from corrigenda.testing.tiny import tiny_model

    patch = make_patch(tiny_model("llama", seed=1), "1.mlp.down")
    with pytest.raises(WrongBase):
        cg.export(patch, llama, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()
    cg.export(patch, llama, tmp_path / "out", to=to, force=True)
    assert (tmp_path / "out" / "card.json").is_file()


def test_a_dense_change_goes_in_at_the_smallest_rank_that_keeps_the_edit(pocket, edit, tmp_path):
    """The edit with noise all over the weight: of full rank, but only one direction matters."""
    site, change = next(iter(edit.changes.items()))
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
    full = change.to_dense().float() + 1e-4 * noise
    patch = with_facts(edit, pocket, {site: Dense(full)})
    found = shrink(patch, pocket)
    assert found.patch.changes[site].rank == 8
    assert "rank 8 keeps" in found.lost[0]
    assert "1 of 1 facts are true" in found.lost[0]
    with pytest.warns(UserWarning, match="rank 8 keeps"):
        cg.export(patch, pocket, tmp_path)
    assert json.loads((tmp_path / "card.json").read_text())["notices"] == list(found.lost)
    assert "rank 8 keeps" in (tmp_path / "README.md").read_text()


def test_a_dense_change_that_needs_its_rank_is_refused(pocket, edit):
    """Two hundred directions that no prompt reads, all larger than the one that matters."""
    site, change = next(iter(edit.changes.items()))
    d_out, d_in = change.shape
    fact = add_related_prompts(pocket, FACT)
    texts = [f"{one} Rome" for one in (fact.prompt, *fact.paraphrases)]
    keys = pocket.tap("mlp.down", layer=site.layer, prompt=texts, role="key").double()
    keys = keys.reshape(-1, d_in)
    seen = torch.cat([keys[~keys.isnan().any(dim=1)], change.right.T.double()])
    unread = torch.linalg.svd(seen, full_matrices=True)[2][-200:]
    random = torch.randn(d_out, 200, dtype=torch.float64)
    directions = torch.linalg.qr(torch.cat([change.left.double(), random], dim=1))[0][:, 1:]
    other = 2 * change.norm() * directions @ unread
    patch = with_facts(edit, pocket, {site: Dense((change.to_dense() + other).float())})
    assert cg.assess(pocket, patch).succeeded
    with pytest.raises(NotExportable, match=r"dense[\s\S]*--to merged"):
        shrink(patch, pocket)


def test_low_ranks_are_left_alone(llama, make_patch):
    patch = make_patch(llama, "1.mlp.down")
    assert shrink(patch, llama) == (patch, ())
    wide = LowRank(torch.ones(32, 600), torch.ones(80, 600))
    many = WeightPatch({Site(1): wide}, header_for(llama, method="wide"))
    assert shrink(many, llama).patch.changes[Site(1)].rank <= 8


def test_a_merged_folder_is_spread_over_files_as_its_base(llama, make_patch, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    llama.model.save_pretrained(base, max_shard_size="60KB")
    tokenizer = llama.tokenizer
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    lm = cg.load(base)
    shards = find_shards(str(base))
    assert len(set(shards.values())) > 2
    patch = make_patch(lm, "1.mlp.down")
    cg.export(patch, lm, out, to="merged")
    files = {one.name for one in out.glob("model*.safetensors")}
    assert files == set(shards.values())
    assert find_shards(str(out)) == shards
    again = cg.load(out)
    with patch.apply(lm):
        assert torch.equal(again.weight(Site(1)), lm.weight(Site(1)))
    assert AutoTokenizer.from_pretrained(out).chat_template == lm.tokenizer.chat_template
    restored = cg.restore_merged(out, tmp_path / "restored")
    assert restored.digest == lm.digest()
    assert load_patch(out / "corrigenda-patch.safetensors") == patch
