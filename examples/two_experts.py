"""Serve several adapters from one process: one Llama in memory, an address for each expert.

    python examples/two_experts.py runs/home-commands runs/own-data
    curl -d '{"instruction": "Dim the lights of the attic to 20%"}' localhost:8000/home-commands

The address names the expert, "base" is the Llama without any. The server listens on this computer
only and is made to be read, not to be put on the internet.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from llama_adapter_edu import (
    disable_adapter,
    generate_answers,
    load_adapter,
    load_llama,
    set_adapter,
)

LONGEST_REQUEST = 100_000  # bytes


class Experts:
    """One model, several adapters. A request may change the active one, so they take turns."""

    def __init__(
        self, folders: Sequence[str], model: str | None = None, max_new_tokens: int = 64
    ) -> None:
        self.model, self.tokenizer = load_llama(model)
        self.max_new_tokens = max_new_tokens
        self.names = ["base"]
        for folder in folders:
            name = Path(folder).resolve().name
            load_adapter(self.model, folder, name)
            self.names.append(name)
        self.turn = Lock()

    def answer(self, name: str, instruction: str) -> str:
        with self.turn:
            if name != "base":
                set_adapter(self.model, name)
            row = {"instruction": instruction, "input": ""}
            with disable_adapter(self.model) if name == "base" else nullcontext():
                [answer] = generate_answers(
                    self.model, self.tokenizer, [row], max_new_tokens=self.max_new_tokens
                )
                return answer


def make_server(experts: Experts, port: int) -> ThreadingHTTPServer:
    """POST /NAME with {"instruction": text} is answered by {"answer": text}."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = self.path.strip("/")
            if name not in experts.names:
                return self.reply(404, {"error": f"no expert {name!r}", "experts": experts.names})
            try:
                instruction = json.loads(self.body())["instruction"]
                if not isinstance(instruction, str):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                return self.reply(400, {"error": 'expected {"instruction": "some text"}'})
            self.reply(200, {"answer": experts.answer(name, instruction)})

        def body(self) -> bytes:
            length = int(self.headers["Content-Length"])
            if not 0 <= length <= LONGEST_REQUEST:
                raise ValueError
            return self.rfile.read(length)

        def reply(self, status: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="+", metavar="FOLDER", help="what save_adapter wrote")
    parser.add_argument("--model", help="the model they were trained on; default: the course's")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    server = make_server(Experts(options.adapters, options.model), options.port)
    print(f"listening on http://127.0.0.1:{server.server_port}, Ctrl-C ends it", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
