"""What the stored results say, as charts: a function for each kind of file."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.site.charts import Chart
from tools.site.records import charts_of, same_everywhere


@dataclass(frozen=True)
class Results:
    """A page of results: what was run, on what, and the charts."""

    title: str
    text: str
    conditions: dict[str, object]
    charts: list[Chart]


def quality(content: dict) -> Results:
    """`quality.json`: adaption prompts beside PEFT's, LoRA and full fine-tuning."""
    runs = defaultdict(lambda: defaultdict(list))
    for name, run in content["runs"].items():
        part, method, *_ = name.split("/")
        runs[part][method].append(run)

    def chart(part: str, name: str, title: str, key: str, measure: str, **style) -> Chart:
        divide_by = style.pop("divide_by", 1)
        rows = {
            method: [run[key] / divide_by for run in done if run.get(key) is not None]
            for method, done in runs[part].items()
        }
        rows = {method: values for method, values in sorted(rows.items()) if values}
        return Chart(f"{part}-{name}", title, measure, rows, **style)

    memory = {"divide_by": 1e9, "unit": "GB"}
    charts = [
        chart("methods", "score", "The same budget for every method", "exact_match", "exact match"),
        chart(
            "methods",
            "size",
            "Numbers that train",
            "trainable_parameters",
            "parameters",
            unit="",
            log=True,
        ),
        chart(
            "speed",
            "speed",
            "Speed, alone on the machine",
            "tokens_per_second",
            "tokens per second",
            unit="tokens/s",
        ),
        chart("speed", "memory", "Memory of the GPU", "peak_memory_bytes", "peak memory", **memory),
        chart("bar", "score", "The whole fine-tuning", "exact_match", "exact match"),
        chart("t4", "score", "The profile for a small GPU", "exact_match", "exact match"),
        chart("telegrams", "style", "The second expert: telegrams", "style", "answers in style"),
    ]
    text = (
        "Home commands to JSON: the share of unseen commands that are answered exactly right. "
        "No room and no phrasing of the test occurs in training. Each method has the learning "
        "rate that was best for it on the validation split."
    )
    return Results("Quality, size and speed", text, content["conditions"], _filled(charts))


def ablations(content: dict) -> Results:
    """`ablations.json`: one setting changed at a time."""
    defaults = content["defaults"]
    scores = defaultdict(list)
    for run in content["runs"]:
        scores[_whole(run["settings"], defaults)].append(run["exact_match"])
    charts = []
    for study, cells in content["studies"].items():
        changed = list(dict.fromkeys(name for cell in cells for name in cell))
        labels = {_label(cell, changed, defaults): _whole(cell, defaults) for cell in cells}
        rows = {label: scores[cell] for label, cell in labels.items() if scores[cell]}
        charts.append(Chart(study, study.replace("_", " ").capitalize(), "exact match", rows))
    text = (
        "Short fine-tunings on home commands: one default setting, and studies that change it. "
        "Each run is one seed: other rooms, other first prompts, another order. Lesson 08 "
        "discusses what is clear and what is not."
    )
    conditions = {k: v for k, v in content.items() if k not in ("runs", "studies", "defaults")}
    return Results("What matters", text, {**conditions, **defaults}, _filled(charts))


def vision(content: dict) -> Results:
    """`vision.json`: a Llama that reads digits."""
    titles = {
        "seen_pairs": "Questions and digits that met in training",
        "held_out_pairs": "Pairs of question and digit that never met",
    }
    charts = []
    for part, title in titles.items():
        rows = defaultdict(list)
        for run in content["runs"]:
            for question, accuracy in run[part].items():
                rows[question].append(accuracy)
        charts.append(Chart(part, title, "right answers", dict(rows)))
    text = (
        "Lesson 09's Llama answers questions about pictures of digits that are not in its "
        "training: which digit it is, whether it is even, and which comes after it."
    )
    conditions = {k: v for k, v in content.items() if not isinstance(v, (dict, list))}
    return Results(
        "A Llama that sees", text, {**conditions, **content["settings"]}, _filled(charts)
    )


def gate_dial(content: dict) -> Results:
    """`gate_dial.json`: the demo's adapter with its gates turned."""
    charts = []
    for place, (control, stops) in enumerate(list(content["stops"].items())[:-1]):
        rows = {f"× {stop['factor']:g}": [stop["loss"]] for stop in stops}
        title = control.capitalize()
        charts.append(Chart(f"control-{place}", title, "loss", rows, "nats", log=True))
    text = (
        "The demo's adapter on unseen commands, with its gate openings multiplied by a factor: "
        "1 is as trained, 0 is the frozen Llama. The file also has each single head switched off."
    )
    return Results("The gate dial", text, content["conditions"], charts)


def token_way(content: dict) -> Results:
    """`token_way.json`: what one token reads from tokens and from prompts, in one head."""
    weights = enumerate(content["prompt_weights"])
    rows = {f"prompt {prompt}": [weight] for prompt, weight in weights}
    place = f"layer {content['layer']}, head {content['head']}"
    title = f"The last token's softmax over the prompts, {place}"
    charts = [Chart("prompts", title, "weight", rows)]
    text = f"One token's way through one head of the demo's adapter. Command: {content['command']}"
    return Results("One token's way", text, content["conditions"], charts)


def swap_experts(content: dict) -> Results:
    """`swap_experts.json`: the keys of one expert with the values and gates of another."""
    charts = []
    for asked in ("commands", "telegrams"):
        rows = defaultdict(list)
        for run in content["runs"]:
            mix = f"keys: {run['keys']}, values: {run['values']}"
            rows[mix].append(run[f"asked for {asked}"]["loss"])
        charts.append(Chart(asked, f"Asked for {asked}", "loss", dict(rows), "nats", log=True))
    text = (
        "Two experts of one Llama, and all mixes of their keys and values; the gates go with the "
        "values. Losses on unseen rows; the file has all answers too. Lesson 11 discusses them."
    )
    return Results("Keys of one, values of another", text, content["conditions"], charts)


READERS: dict[str, Callable[[dict], Results]] = {
    "quality": quality,
    "ablations": ablations,
    "vision": vision,
    "gate_dial": gate_dial,
    "token_way": token_way,
    "swap_experts": swap_experts,
}


def other(name: str, content: object) -> Results:
    """A file without a reader of its own: the charts of its records, if it is a list of them."""
    title = name.replace("_", " ").capitalize()
    if not (isinstance(content, list) and content and isinstance(content[0], dict)):
        return Results(title, "", {}, [])
    conditions, charts = same_everywhere(content), _filled(charts_of(content))
    return Results(title, "", conditions, charts)


def page(name: str, text: str) -> tuple[str, list[Chart]]:
    """The page of `name`.json, in Markdown, and the charts that it shows as `name`-chart.svg.

    A file that cannot be drawn is shown whole.
    """
    content = json.loads(text)
    results = READERS[name](content) if name in READERS else other(name, content)
    lines = [f"# {results.title}", "", results.text, "", *_conditions(results.conditions)]
    for chart in results.charts:
        lines += ["", f"## {chart.title}", "", f"![{chart.alt()}](figures/{name}-{chart.name}.svg)"]
        lines += ["", chart.table()]
    if not results.charts:
        lines += ["", "```json", json.dumps(content, indent=1), "```"]
    lines += ["", f"All runs: {{download}}`{name}.json <data/{name}.json>`", ""]
    return "\n".join(lines), results.charts


def _conditions(conditions: dict[str, object]) -> Iterable[str]:
    if conditions:
        yield "| setting of all runs | value |\n|---|---|"
        for key, value in conditions.items():
            if value is not False:
                yield f"| {key.replace('_', ' ')} | {value} |"


def _filled(charts: Iterable[Chart]) -> list[Chart]:
    return [chart for chart in charts if chart.rows]


def _whole(settings: dict, defaults: dict) -> tuple:
    """All settings of a run."""
    return tuple({**defaults, **settings}.values())


def _label(settings: dict, changed: list[str], defaults: dict) -> str:
    """The settings that a study changes, as this cell has them."""
    values = {**defaults, **settings}
    label = ", ".join(f"{name}={values[name]}" for name in changed)
    return label if settings else f"{label} (default)"
