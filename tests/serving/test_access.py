"""Who may ask, by which name, and how much."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import httpx2
import openai
import pytest

import corrigenda as cg
from corrigenda.errors import BadConfig, UnsafeAddress
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch
from corrigenda.serving.guard import host_name
from corrigenda.serving.settings import Access, Limits, require_safe
from corrigenda.testing.tiny import tiny_model
from tests.support.serving import Serving, serving, weights

TOKEN, ADMIN = "a-long-secret", "another-long-secret"
LIMITS = Limits(max_body=4000, max_tokens=64, max_waiting=4, max_rows=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, in_context: Patch) -> Path:
    """A folder of patches, and a file next to it."""
    folder = tmp_path_factory.mktemp("served") / "patches"
    folder.mkdir()
    in_context.save(folder / "context.safetensors")
    in_context.save(folder.parent / "outside.safetensors")
    (folder / "broken.safetensors").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def lm(pocket: LanguageModel) -> LanguageModel:
    return copy.deepcopy(pocket)


@pytest.fixture(scope="module")
def server(lm: LanguageModel, tuned: Patch, folder: Path) -> Generator[Serving]:
    access = Access(TOKEN, ADMIN, hosts=("models.example",), patch_folder=folder)
    with serving(lm, tuned, access=access, limits=LIMITS, files={"tuned": tuned}) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Serving) -> Generator[httpx2.Client]:
    with server.http(TOKEN) as client:
        yield client


@pytest.fixture(scope="module")
def admin(server: Serving) -> Generator[httpx2.Client]:
    with server.http(ADMIN) as client:
        yield client


def error_of(reply: httpx2.Response) -> tuple[int, str | None, str | None]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return reply.status_code, error["code"], error["param"]


def completion(**options: object) -> dict[str, object]:
    return {"model": "pocket", "prompt": "The", "max_tokens": 1} | options


def test_wrong_token_is_refused(server: Serving) -> None:
    with pytest.raises(openai.AuthenticationError, match="token is missing or wrong") as caught:
        server.client("wrong").models.list()
    assert caught.value.status_code == 401
    for header in ({}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
        reply = httpx2.get(f"{server.address}/v1/models", headers=header)
        assert error_of(reply)[:2] == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert server.client(TOKEN).models.list().data[1].id == "pocket-edited"


def test_every_route_but_health_asks_for_the_token(server: Serving) -> None:
    with server.http() as client:
        assert client.get("/health").json() == {"status": "ok"}
        for path in ("/metrics", "/v1/models", "/openapi.json", "/admin/patches", "/nowhere"):
            assert client.get(path).status_code == 401
        assert client.post("/v1/completions", json=completion()).status_code == 401


def test_users_do_not_administrate(http: httpx2.Client, admin: httpx2.Client) -> None:
    assert error_of(http.get("/admin/patches"))[:2] == (401, "invalid_api_key")
    assert http.delete("/admin/models/pocket-edited").status_code == 401
    assert admin.get("/admin/patches").status_code == 200
    assert admin.get("/v1/models").status_code == 200


def test_without_tokens_patches_stay(pocket: LanguageModel) -> None:
    with serving(tiny_model("llama")) as running, running.http() as client:
        assert client.get("/v1/models").status_code == 200
        assert error_of(client.get("/admin/patches"))[:2] == (403, "no_admin_token")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("Models.Example:1", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_only_its_own_names_are_answered(server: Serving, host: str, status: int) -> None:
    """A page whose name leads to this machine (DNS rebinding) gets nothing, not even health."""
    reply = httpx2.get(f"{server.address}/health", headers={"Host": host})
    assert reply.status_code == status


def test_pages_of_other_sites_get_no_leave_and_cannot_send_forms(http: httpx2.Client) -> None:
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = http.options("/v1/completions", headers=origin)
    assert reply.status_code == 405
    assert "access-control-allow-origin" not in reply.headers
    body = json.dumps(completion())
    reply = http.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"})
    assert error_of(reply)[:2] == (415, "unsupported_media_type")


def test_large_bodies_are_refused_whether_declared_or_not(http: httpx2.Client) -> None:
    body = json.dumps(completion(prompt="x" * 5000)).encode()
    headers = {"Content-Type": "application/json"}
    reply = http.post("/v1/completions", content=body, headers=headers)
    assert error_of(reply)[:2] == (413, "request_too_large")
    reply = http.post("/v1/completions", content=iter([body[:3000], body[3000:]]), headers=headers)
    assert error_of(reply)[:2] == (413, "request_too_large")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"max_tokens": 65}, "max_tokens_exceeded", "max_tokens"),
        ({"n": 5}, "too_many_answers", "n"),
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"stop": [""]}, "invalid_value", "stop.0"),
        ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"prompt": [5, 6]}, "unsupported_parameter", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"invented": 1}, "unknown_parameter", "invented"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": "The " * 600}, "CG105", None),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    http: httpx2.Client, change: dict[str, object], code: str, param: str | None
) -> None:
    reply = http.post("/v1/completions", json=completion(**change))
    assert error_of(reply) == (400, code, param)
    assert error_of(http.post("/v1/completions", json=completion(**change, stream=True)))[0] == 400


def test_options_of_a_stream_need_a_stream(http: httpx2.Client) -> None:
    body = completion(stream_options={"include_usage": True})
    reply = http.post("/v1/completions", json=body)
    assert error_of(reply) == (400, "invalid_value", "stream_options")


def test_what_asks_for_nothing_is_taken(http: httpx2.Client) -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "best_of": 1,
        "echo": False,
        "user": "x",
        "suffix": None,
        "logprobs": None,
    }
    assert http.post("/v1/completions", json=completion(**neutral)).status_code == 200


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "invalid_value", "messages"),
        ([{"role": "system", "content": "x"}], "invalid_value", "messages"),
        ([{"role": "tool", "content": "x"}], "invalid_value", "messages.0.role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "invalid_value",
            None,
        ),
    ],
)
def test_turns_that_are_not_understood_are_refused(
    http: httpx2.Client, messages: list[object], code: str, param: str | None
) -> None:
    reply = http.post("/v1/chat/completions", json={"model": "pocket", "messages": messages})
    status, found, where = error_of(reply)
    assert (status, found) == (400, code)
    assert param is None or where == param


def test_no_json_and_no_route_have_the_same_form(http: httpx2.Client) -> None:
    headers = {"Content-Type": "application/json"}
    reply = http.post("/v1/completions", content=b"{", headers=headers)
    assert error_of(reply)[:2] == (400, "invalid_json")
    assert error_of(http.get("/v1/embeddings"))[0] == 404
    assert error_of(http.get("/v1/completions"))[0] == 405


def test_without_a_chat_template_chat_is_refused_and_says_so() -> None:
    with serving(tiny_model("llama"), name="tiny") as running:
        with pytest.raises(openai.BadRequestError, match="has no chat template") as caught:
            running.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
            )
        assert caught.value.code == "CG502"


def test_a_full_queue_is_refused_and_empties_again(server: Serving, http: httpx2.Client) -> None:
    busy = threading.Event()
    held = server.scheduler.call(lambda: busy.wait(60))

    def ask(_: int) -> int:
        with server.http(TOKEN) as client:
            reply = client.post("/v1/completions", json=completion())
        if reply.status_code == 429:
            assert error_of(reply)[1] == "rate_limit_exceeded"
            assert int(reply.headers["retry-after"]) > 0
        return reply.status_code

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, index) for index in range(8)]
        refused = [one.result() for one in islice(as_completed(asked), 4)]
        busy.set()
        statuses = [one.result() for one in asked]
    assert held.result()
    assert refused == [429] * 4
    assert sorted(statuses) == [200] * 4 + [429] * 4
    assert http.post("/v1/completions", json=completion()).status_code == 200


def test_patches_are_put_on_and_taken_off_while_it_runs(
    server: Serving, admin: httpx2.Client, lm: LanguageModel, tuned: Patch
) -> None:
    prompt = "The capital of France is"
    client = server.client(TOKEN)

    def ask(model: str) -> str:
        reply = client.completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0)
        return reply.choices[0].text[:5]

    assert admin.get("/admin/patches").json()["patches"] == [
        "tuned",
        "broken.safetensors",
        "context.safetensors",
    ]
    body = {"patches": ["context.safetensors"]}
    described = admin.put("/admin/models/new/one", json=body).json()
    assert described["id"] == "new/one"
    assert described["patches"][0]["method"] == "ice"
    assert ask("new/one") == " Rome"
    body = {"patches": ["tuned", "context.safetensors"]}
    assert len(admin.put("/admin/models/new/one", json=body).json()["patches"]) == 2
    assert ask("new/one") == " Rome"
    assert ask("pocket") == " Pari"
    assert admin.delete("/admin/models/new/one").json()["deleted"]
    with pytest.raises(openai.NotFoundError):
        ask("new/one")
    assert error_of(admin.delete("/admin/models/new/one"))[:2] == (404, "model_not_found")


@pytest.mark.parametrize(
    ("name", "patches", "status", "code"),
    [
        ("x", ["../outside.safetensors"], 404, "patch_not_found"),
        ("x", ["/etc/passwd"], 404, "patch_not_found"),
        ("x", ["none.safetensors"], 404, "patch_not_found"),
        ("x", ["a\0b"], 404, "patch_not_found"),
        ("x", ["broken.safetensors"], 400, "CG402"),
        ("x", ["tuned", "tuned"], 400, "CG406"),
        ("pocket", ["tuned"], 409, "base_model"),
        ("x", [], 400, "invalid_value"),
    ],
)
def test_what_cannot_be_put_on_is_refused_and_changes_nothing(
    admin: httpx2.Client, name: str, patches: list[str], status: int, code: str
) -> None:
    before = admin.get("/v1/models").json()
    reply = admin.put(f"/admin/models/{name}", json={"patches": patches})
    assert error_of(reply)[:2] == (status, code)
    assert admin.get("/v1/models").json() == before


def test_figures_are_those_of_prometheus(server: Serving, http: httpx2.Client) -> None:
    http.post("/v1/completions", json=completion(max_tokens=3))
    http.get("/nowhere")
    server.wait_until_idle()
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(
        line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#")
    )
    assert int(lines['corrigenda_tokens_total{model="pocket"}']) >= 3
    assert int(lines['corrigenda_replies_total{route="/v1/completions",status="200"}']) >= 1
    assert 'corrigenda_replies_total{route="none",status="404"}' in lines
    assert lines["corrigenda_answers_running"] == "0"


def test_other_addresses_need_a_token_before_anything_is_loaded() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "models.example"):
        with pytest.raises(UnsafeAddress, match=r"^CG701 UnsafeAddress: the address"):
            require_safe(host, Access())
        require_safe(host, Access(token="x"))
    for host in ("127.0.0.1", "localhost", "::1"):
        require_safe(host, Access())
    with pytest.raises(UnsafeAddress):
        cg.serve(tiny_model("llama"), host="0.0.0.0")


def test_tokens_are_in_no_representation() -> None:
    assert TOKEN not in repr(Access(TOKEN, ADMIN))
    assert ADMIN not in repr(Access(TOKEN, ADMIN))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Access(token=" "),
        lambda: Access(admin_token="\u00e4"),
        lambda: Access(patch_folder=Path("/nowhere")),
        lambda: Limits(max_tokens=0),
    ],
)
def test_settings_that_mean_nothing_are_refused(build) -> None:
    with pytest.raises(BadConfig, match=r"^CG502 "):
        build()


def test_names_of_hosts() -> None:
    names = {"a:1": "a", "A": "a", "[::1]": "::1", "[::1]:5": "::1", "": ""}
    assert {header: host_name(header) for header in names} == names


def test_a_port_in_use_and_names_without_meaning_are_refused(tuned: Patch) -> None:
    lm = tiny_model("llama")
    with serving(lm, name="tiny") as running:
        port = int(running.address.rpartition(":")[2])
        with pytest.raises(BadConfig, match="cannot be listened at"):
            cg.serve(tiny_model("llama"), port=port)
    for patches in ({"tiny": tuned}, {"": tuned}, {"x": []}):
        with pytest.raises(BadConfig):
            cg.serve(lm, patches, name="tiny", port=0)


def test_patch_of_another_model_is_refused_before_start(tuned: Patch) -> None:
    lm = tiny_model("llama")
    before = weights(lm)
    with pytest.raises(cg.CorrigendaError, match=r"^CG401 "):
        cg.serve(lm, tuned, port=0)
    assert weights(lm) == before
    assert len(lm.patches) == 0
