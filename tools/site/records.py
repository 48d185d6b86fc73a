"""Charts of a list of records, as the speed benchmarks write them: words say what was measured."""

from collections import defaultdict

from tools.site.charts import Chart

ROW = ("method", "way")  # what the rows of a chart compare; other words make charts of their own
MEASURES = {"median_ms": ("median time", "ms"), "peak_gib": ("peak memory", "GiB")}
SETTINGS = ("adapter_len", "cpu_threads")  # numbers that are settings


def same_everywhere(records: list[dict]) -> dict[str, object]:
    """The settings that all records share."""
    first, *others = records
    return {
        key: value
        for key, value in first.items()
        if _is_setting(key, value) and all(record.get(key) == value for record in others)
    }


def charts_of(records: list[dict]) -> list[Chart]:
    """A chart for each measure and each group of settings, its rows methods and ways."""
    shared = same_everywhere(records)
    groups = defaultdict(list)
    for record in records:
        own = {
            key: value
            for key, value in record.items()
            if _is_setting(key, value) and key not in shared and key not in (*ROW, "failed")
        }
        title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())
        groups[title or "All settings"].append(record)
    charts = []
    for number, (title, members) in enumerate(groups.items()):
        for key, (measure, unit) in MEASURES.items():
            rows = {_row(record): [record[key]] for record in members if record.get(key)}
            name = f"{key.replace('_', '-')}-{number}"
            charts.append(Chart(name, f"{title}: {measure}", measure, rows, unit))
    return charts


def _is_setting(key: str, value: object) -> bool:
    return isinstance(value, str) or key in SETTINGS


def _row(record: dict) -> str:
    return ", ".join(record[key] for key in ROW if key in record)
