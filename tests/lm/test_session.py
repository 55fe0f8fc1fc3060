"""One state per model: what wrappers share, what copies do not, and how it is shown."""

import copy
import pickle
import threading

import pytest
import torch

from corrigenda.errors import EmptyTarget, NotApplied, UnknownSite
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.passes import PassStop
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Site, Tokens, resolve_sites, state, value
from corrigenda.patch import ledger_of
from corrigenda.testing.tiny import tiny_model
from tests.support.patches import *  # noqa: F403


def test_a_fresh_model_has_a_working_empty_list(llama):
    assert not llama.patches
    assert repr(llama.patches) == "<active patches: none>"
    llama.patches.clear()
    with pytest.raises(NotApplied, match="CG406"):
        llama.patches.revert("nothing")


def test_two_wrappers_see_the_same_patches(make_patch, llama, bits, same_bits):
    """The second wrapper is never given to `ledger_of` nor to `apply`."""
    before = bits(llama)
    other = LanguageModel(llama.model, llama.tokenizer, name="other")
    patch = make_patch(llama, "1.mlp.down")
    patch.apply(llama)
    assert tuple(other.patches) == (patch,)
    assert repr(other.patches) == "<active patches: test>"
    assert other.interceptors is llama.interceptors
    assert other.prompt_ends is llama.prompt_ends
    other.patches.clear()
    assert not llama.patches
    assert same_bits(llama, before)


def test_copies_have_a_session_of_their_own(make_patch, llama):
    with make_patch(llama, "1.mlp.down").apply(llama):
        for twin in (copy.deepcopy(llama.model), copy.copy(llama.model)):
            assert session_of(twin) is not session_of(llama.model)
            assert not session_of(twin).entries
        assert len(llama.patches) == 1
        again = pickle.loads(pickle.dumps(session_of(llama.model)))
    assert again is None


def test_overrides_are_left_in_any_order(llama):
    session, model = session_of(llama.model), llama.model
    plain = model.generate
    first, second = (session.override("generate", lambda number=n: number) for n in (1, 2))
    first.__enter__()
    second.__enter__()
    assert model.generate() == 2
    first.__exit__(None, None, None)
    assert model.generate() == 2
    second.__exit__(None, None, None)
    assert model.generate == plain


def test_reading_by_name_is_what_points_give(llama):
    prompts = ["The capital of France is", "Rome"]
    ids = [llama.tokenizer(text).input_ids for text in prompts]
    one = llama.tap("mlp.down", layer=1, prompt=prompts[0])
    point = value(Site(1))
    assert torch.equal(one, llama.tap(Tokens.pad(ids[:1], 0), [point])[point][0])
    assert torch.equal(one, llama.tap("1.mlp.down", prompt=prompts[0]))
    several = llama.tap("state", layer=[3, 0], prompt=prompts)
    assert several.shape == (2, 2, len(ids[0]), llama.d_model)
    padded = len(ids[0]) - len(ids[1])
    assert several[:, 1, :padded].isnan().all()
    assert not several[:, 1, padded:].isnan().any()
    alone = llama.tap(Tokens.pad(ids[1:], 0), [state(3)])[state(3)][0, -1]
    torch.testing.assert_close(several[0, 1, -1], alone, rtol=1e-4, atol=1e-5)
    entry = llama.tap("mlp.down", layer=2, role="key", prompt=prompts[0])
    assert entry.shape == (len(ids[0]), llama.d_inner)


def test_reading_by_name_refuses_what_is_not_there(llama):
    for name, options in {
        "mlp.dwn": {"layer": 1},
        "mlp.down": {},
        "attn.q": {"layer": 99},
        "mlp.up": {"layer": 1, "role": "state"},
    }.items():
        with pytest.raises(UnknownSite, match="CG303"):
            llama.tap(name, prompt="Rome", **options)
    with pytest.raises(EmptyTarget, match="no prompt"):
        llama.tap("mlp.down", layer=1, prompt=[])


def test_a_pass_that_stops_early_leaves_other_threads_alone(llama):
    """A reader in one thread neither records nor ends the pass of another."""
    tokens = Tokens.pad([[5, 6, 7]], 0)
    expected = llama.logits(tokens)
    found: list[torch.Tensor] = []
    inside, ended = threading.Event(), threading.Event()

    def wait(tensor):
        if threading.current_thread() is threading.main_thread():
            inside.set()
            assert ended.wait(20)
        return tensor

    def other():
        assert inside.wait(20)
        found.append(llama.logits(tokens))
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    with llama.swap({state(0): wait}):
        seen = llama.tap(tokens, [state(1)])[state(1)]
    thread.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(seen, llama.tap(tokens, [state(1)])[state(1)])


def test_stops_are_told_apart():
    outer, inner = PassStop(), PassStop()
    reached = []
    with outer:
        with inner:
            outer()
        reached.append("inner caught what the outer one should")
    assert not reached


def test_layers_become_sites(llama):
    assert resolve_sites(llama, [2, 0, 2]) == (Site(0), Site(2))
    named = resolve_sites(llama, {"attn.out": [1], "mlp.up": [0]})
    assert named == (Site(0, "mlp.up"), Site(1, "attn.out"))
    with pytest.raises(UnknownSite, match=r"no block 4 in tiny-llama: it has 4(.|\n)*method mend"):
        resolve_sites(llama, [4], where="method mend")


def test_the_ledger_outlives_wrappers(make_patch):
    lm = tiny_model("gpt2")
    patch = make_patch(lm, "1.mlp.down")
    patch.apply(LanguageModel(lm.model, lm.tokenizer))
    assert len(ledger_of(lm)) == 1
    lm.patches.revert(patch)
    assert not lm.patches
