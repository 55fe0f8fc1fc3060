"""The application: routes of OpenAI's form, administration of patches, health and figures."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePath

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from corrigenda.errors import CorrigendaError
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch import Patch
from corrigenda.serving.counters import Figure, format_figures
from corrigenda.serving.generation import answer
from corrigenda.serving.guard import Guard
from corrigenda.serving.jobs import ServedModel
from corrigenda.serving.refusals import Refusal, refusal_of
from corrigenda.serving.requests import ChatRequest, CompletionRequest, PatchedModelRequest
from corrigenda.serving.scheduler import Scheduler
from corrigenda.serving.served_models import PatchFiles, ServedModels
from corrigenda.serving.settings import Access, Limits
from corrigenda.version import VERSION

_LOG = logging.getLogger(__name__)

Patches = Patch | Sequence[Patch] | Mapping[str, Patch | Sequence[Patch]]


def create_app(
    lm: LanguageModel,
    patches: Patches = (),
    *,
    name: str = "",
    host: str = "127.0.0.1",
    access: Access | None = None,
    limits: Limits | None = None,
    files: Mapping[str, Patch] | None = None,
    force: bool = False,
) -> FastAPI:
    """Return an ASGI application that serves a model with and without patches.

    It owns the model until it is shut down, in one thread; then the model is as it was. It has to
    run in one process.

    Args:
        lm: The model.
        patches: A patch or several, which together are `NAME-edited`; or by name of the served
            model, one or several each.
        name: Name of the unedited model; the last part of its own if not given.
        host: Where it will listen, one of the names it may be called by.
        access: Tokens and names.
        limits: Bounds on requests.
        files: Patches that may be put on later, by name.
        force: Serve patches on a model other than the one they were made on.

    Raises:
        BadConfig (CG502): a served model has no name or no patch.
        WrongBase (CG401), NotApplied (CG406) ...: patches do not belong on this model.
    """
    lm = require_lm(lm)
    access, limits = access or Access(), limits or Limits()
    base_name = name or PurePath(lm.name).name
    models = ServedModels(base_name, _by_name(patches, base_name))
    scheduler = Scheduler(lm, limits, force=force)
    try:
        for model in models:
            scheduler.switch.to(model)
        scheduler.switch.to(models.base)
    except CorrigendaError:
        scheduler.close()
        raise

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.close)

    app = FastAPI(
        title="Corrigenda", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.scheduler = scheduler
    _add_errors(app)
    _add_generation(app, models, scheduler, limits)
    _add_administration(app, models, scheduler, PatchFiles(files or {}, access.patch_folder))
    replies: Counter[tuple[str, int]] = Counter()
    _add_figures(app, scheduler, replies)
    app.add_middleware(Guard, host=host, access=access, limits=limits, replies=replies)
    return app


def _by_name(patches: Patches, base_name: str) -> dict[str, Sequence[Patch]]:
    if not isinstance(patches, Mapping):
        several = patches if isinstance(patches, Sequence) else (patches,)
        return {f"{base_name}-edited": several} if several else {}
    return {
        name: given if isinstance(given, Sequence) else (given,) for name, given in patches.items()
    }


def _add_errors(app: FastAPI) -> None:
    """Let every error have the form of OpenAI's."""

    async def reply(_: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        if refusal.status >= 500 and not isinstance(error, Refusal):
            _LOG.error("a request failed", exc_info=error)
        return JSONResponse(refusal.to_json(), refusal.status, headers=refusal.headers)

    async def reply_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "as registered"
        return await reply(request, _refusal_of_body(error))

    async def reply_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "as registered"
        return await reply(request, Refusal(error.status_code, str(error.detail)))

    app.add_exception_handler(Refusal, reply)
    app.add_exception_handler(CorrigendaError, reply)
    app.add_exception_handler(RequestValidationError, reply_invalid)
    app.add_exception_handler(HTTPException, reply_http)
    app.add_exception_handler(Exception, reply)


def _refusal_of_body(error: RequestValidationError) -> Refusal:
    """Return the refusal of a body whose form is wrong; the first fault is told."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = str(first.get("ctx", {}).get("param", ".".join(place))) or None
    match first["type"]:
        case "extra_forbidden":
            return Refusal(
                400,
                f"Unrecognized parameter: {param}.",
                param=param,
                code="unknown_parameter",
            )
        case "unsupported_parameter" | "invalid_value" as code:
            return Refusal(400, first["msg"], param=param, code=code)
        case "missing":
            return Refusal(
                400, f"{param} is missing.", param=param, code="missing_required_parameter"
            )
        case kind:
            message = f"{param}: {first['msg']}." if param else f"{first['msg']}."
            return Refusal(
                400,
                message,
                param=param,
                code="invalid_json" if "json" in kind else "invalid_value",
            )


def _add_generation(
    app: FastAPI, models: ServedModels, scheduler: Scheduler, limits: Limits
) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, object]:
        return {"object": "list", "data": [_describe(model, models) for model in models]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, object]:
        return _describe(models.get(name), models)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await answer(request, body, models.get(body.model), scheduler, limits)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answer(request, body, models.get(body.model), scheduler, limits)


def _describe(model: ServedModel, models: ServedModels) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "corrigenda",
        "parent": None if model is models.base else models.base.name,
        "patches": [
            {
                "method": patch.header.method,
                "facts": len(patch.header.facts),
                "digest": patch.digest(),
            }
            for patch in model.patches
        ],
    }


def _add_administration(
    app: FastAPI, models: ServedModels, scheduler: Scheduler, files: PatchFiles
) -> None:
    @app.get("/admin/patches")
    async def list_patches() -> dict[str, object]:
        return {"patches": await asyncio.to_thread(lambda: files.names)}

    @app.put("/admin/models/{name:path}")
    async def put_on(name: str, body: PatchedModelRequest) -> dict[str, object]:
        patches = [await asyncio.to_thread(files.read, one) for one in body.patches]
        model = models.put(name, patches)
        await asyncio.wrap_future(scheduler.check(model))
        models.keep(model)
        return _describe(model, models)

    @app.delete("/admin/models/{name:path}")
    async def take_off(name: str) -> dict[str, object]:
        models.remove(name)
        return {"id": name, "object": "model", "deleted": True}


def _add_figures(app: FastAPI, scheduler: Scheduler, replies: Counter[tuple[str, int]]) -> None:
    @app.get("/health")
    async def health() -> Response:
        alive = scheduler.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        figures = [
            Figure(
                "corrigenda_tokens_total",
                "counter",
                "New tokens, by served model.",
                [({"model": name}, count) for name, count in scheduler.num_tokens.items()],
            ),
            Figure(
                "corrigenda_replies_total",
                "counter",
                "Replies, by route and status.",
                [
                    ({"route": route, "status": str(status)}, n)
                    for (route, status), n in replies.items()
                ],
            ),
            Figure(
                "corrigenda_patch_switches_total",
                "counter",
                "How often patches were put on for another served model.",
                [({}, scheduler.switch.num_switches)],
            ),
            Figure(
                "corrigenda_answers_waiting",
                "gauge",
                "Answers that have not begun.",
                [({}, scheduler.num_waiting)],
            ),
            Figure(
                "corrigenda_answers_running",
                "gauge",
                "Answers that are being generated.",
                [({}, scheduler.num_running)],
            ),
        ]
        return PlainTextResponse(format_figures(figures), media_type="text/plain; version=0.0.4")
