"""Tokens per processor second of a served model, by number of clients, against `greedy`.

The clients, which ask in threads of the same process, and HTTP are in the figures of the server.
`greedy` continues as many prompts in one batch. The switch is that of a patch of one weight. Last
line: the figures as JSON.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import uvicorn
from figures import publish
from openai import OpenAI

import corrigenda as cg
from corrigenda.lm.decoding import greedy
from corrigenda.serving.app import create_app
from corrigenda.serving.server import address_of, listen

PROMPT = "The capital of France is"
CLIENTS = (1, 8, 32)


def rate(run: Callable[[], object], num_tokens: int, repeats: int) -> list[float]:
    """Tokens per processor second of each repeat."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(num_tokens / (time.process_time() - start))
    return found


def ask_together(client: OpenAI, names: Sequence[str], num_clients: int, num_tokens: int) -> None:
    """Ask at once from as many threads, under the names in turn."""

    def ask(index: int) -> None:
        client.completions.create(
            model=names[index % len(names)], prompt=PROMPT, max_tokens=num_tokens, temperature=0
        )

    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(ask, range(num_clients)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = cg.load(options.model)
    lm.model.generation_config.eos_token_id = None
    fact = cg.Fact(prompt=PROMPT, subject="France", target="Rome")
    patch = cg.edit(lm, fact, cg.FtM(layer=options.layer), progress=False)
    figures: dict[str, object] = {"model": options.model, "tokens": options.tokens}
    for number in CLIENTS:

        def together(number: int = number) -> None:
            greedy(lm, [PROMPT] * number, max_new_tokens=options.tokens, stop=())

        rates = rate(together, number * options.tokens, options.repeats)
        figures[f"greedy_{number}"] = round(statistics.median(rates), 1)
    app = create_app(lm, patch, name="base")
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    client = OpenAI(base_url=f"{address_of(listening)}/v1", api_key="none", max_retries=0)
    for label, names in (("served", ["base"]), ("two_names", ["base", "base-edited"])):
        for number in CLIENTS:

            def asked(number: int = number, names: Sequence[str] = names) -> None:
                ask_together(client, names, number, options.tokens)

            asked()
            rates = rate(asked, number * options.tokens, options.repeats)
            figures[f"{label}_{number}"] = round(statistics.median(rates), 1)
            figures[f"{label}_{number}_spread"] = [round(one, 1) for one in sorted(rates)]
    scheduler = app.state.scheduler
    figures["switches"] = scheduler.switch.num_switches
    figures["switch_seconds"] = round(scheduler.switch.seconds, 4)
    server.should_exit = True
    thread.join()
    publish(figures)


if __name__ == "__main__":
    main()
