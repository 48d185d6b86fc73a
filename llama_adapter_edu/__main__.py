"""The command line: `python -m llama_adapter_edu doctor | progress | report | finetune | chat`.

Nothing that takes time is imported before it is needed, so `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 when all went well, 1 on a failure, 2 on misuse."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # some consoles know no ✓
    try:
        return command(**options)
    except (ImportError, OSError, ValueError, TypeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped. Nothing was saved.'}", file=sys.stderr)
        return 130


def _doctor() -> int:
    from llama_adapter_edu.course.doctor import doctor

    return doctor()


def _progress(**options) -> int:
    from llama_adapter_edu.course.progress.saved_notebooks import show_progress

    return show_progress(**options)


def _report(**options) -> int:
    from llama_adapter_edu.course.progress.class_report import class_report

    return class_report(**options)


def _finetune(data: str | None = None, **options) -> int:
    if data is None:
        if "max_length" in options:
            raise ValueError("--max-length is for rows of your own: name them with --data.")
        from llama_adapter_edu.course.demo import run_demo

        return run_demo(**options)
    from llama_adapter_edu.course.demo import draw_training
    from llama_adapter_edu.job.own_data import finetune_on

    return finetune_on(data, draw=draw_training, **options)


def _chat(**options) -> int:
    from llama_adapter_edu.chat import chat

    return chat(**options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_adapter_edu", description="LLaMA-Adapter, to learn and to use."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, run: Callable, text: str, **more) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, **more)
        command.set_defaults(command=run)
        return command

    add_command("doctor", _doctor, "is everything here that the course needs?")

    text = "which exercises are solved, and where to go on"
    progress = add_command("progress", _progress, text)
    what = "where your notebooks are (default: notebooks)"
    progress.add_argument("folder", nargs="?", default="notebooks", metavar="FOLDER", help=what)

    text = "for teachers: run a class's notebooks, one row a student. This runs the students' code"
    report = add_command("report", _report, text)
    report.add_argument("folder", metavar="FOLDER", help="holds FOLDER/STUDENT/*.ipynb, or zips")
    what = "the files' name without .csv and .html (default: class-report)"
    report.add_argument("--output", default="class-report", metavar="NAME", help=what)
    what = "that a notebook may take (default: 900)"
    report.add_argument("--seconds", type=float, default=900, help=what)
    what = "notebooks that run at the same time (default: one a core)"
    report.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help=what)
    what = "a file with a name a line: who handed in nothing has a row, too"
    report.add_argument("--roster", metavar="FILE", help=what)
    what = "a regular expression with a group `student` for the names of files or folders"
    report.add_argument("--pattern", default=argparse.SUPPRESS, metavar="REGEX", help=what)

    text = "a Llama learns home commands, or rows of yours: train, compare before and after, save"
    formatter = argparse.ArgumentDefaultsHelpFormatter
    job = add_command("finetune", _finetune, text, formatter_class=formatter)
    add, own = job.add_argument, {"default": argparse.SUPPRESS}  # the defaults are the job's own
    what = "rows of yours: a .jsonl or .json file, a folder of them, or a data set's id on the hub"
    add("--data", metavar="ROWS", help=what, **own)
    what = "folder for adapter, plot and results (default: runs/home-commands or runs/own-data)"
    add("--output", metavar="FOLDER", help=what, **own)
    what = "optimiser steps (default: 90 for the commands, 130 for rows of yours)"
    add("--steps", type=int, help=what, **own)
    add("--batch-size", type=int, default=4, help="rows in a step")
    add("--learning-rate", type=float, default=0.03, help="its highest value, after warm-up")
    add("--adapter-len", type=int, default=10, help="prompts in a layer")
    what = "how many of the topmost layers get prompts (default: 30, or all of a shallower model)"
    add("--adapter-layers", type=int, help=what, **own)
    add("--init-std", type=float, default=0.3, help="standard deviation of the first prompts")
    what = "rows to test with (default: 200 commands; of your rows a tenth, at most 200)"
    add("--test-rows", type=int, help=what, **own)
    what = "tokens that a row of yours may have; longer ones are left out (default: 512)"
    add("--max-length", type=int, help=what, **own)
    add("--seed", type=int, default=0, help="of prompts, data and order")
    _add_model_options(job)

    chat = add_command("chat", _chat, "talk to the base model or to saved adapters")
    what = "a saved adapter's folder; several may be given, the last one answers first"
    chat.add_argument("--adapter", action="append", default=[], metavar="FOLDER", help=what)
    what = "tokens an answer may have (default: 200)"
    chat.add_argument("--max-new-tokens", type=int, default=200, help=what)
    _add_model_options(chat)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    what = "a hub id or a folder, instead of the course's Llama"
    parser.add_argument("--model", metavar="NAME", default=argparse.SUPPRESS, help=what)
    what = "use the CPU even where there is a GPU"
    parser.add_argument("--cpu", action="store_true", default=argparse.SUPPRESS, help=what)


if __name__ == "__main__":
    sys.exit(main())
