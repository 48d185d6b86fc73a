"""Teaching notes: from the masters, complete, and kept up to date by the build."""

import re

import course
import pytest

from tools import build
from tools.master import read_lesson
from tools.teaching import teaching_text

MASTERS = sorted((course.ROOT / "solutions").glob("*.py"))


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_page_has_time_mistakes_questions_and_points(path):
    lesson = read_lesson(path)
    text = teaching_text(lesson)
    assert "None." not in text
    assert "minutes in all" in text
    discussion = text.partition("## For discussion\n")[2].partition("## Marking")[0]
    assert discussion.count("<details>") == discussion.count("</details>") >= 3
    mistakes = text.partition("## Mistakes to expect\n")[2].partition("## For discussion")[0]
    for exercise in lesson.exercises:
        assert f"### {exercise.id} · " in mistakes
    assert mistakes.count("<details>") == sum(len(e.wrong) for e in lesson.exercises)


def test_what_the_page_says_of_a_small_lesson():
    text = teaching_text(read_lesson(course.FIXTURE / "solutions" / "91_second.py"))
    assert text.startswith("<!-- Generated from solutions/91_second.py by tools/build.py;")
    assert "1 minutes for 1 exercise." in text
    assert "| 91.1 | Add one | easy ●○○ | 1 | 1 |" in text
    assert "<summary>add_one(-1) is 0</summary>\n\n```python\ndef add_one(n): return abs(n)" in text
    assert "def add_one(n): return 1 + n\n\n\ndef add_one(n): return n - -1" in text
    assert "The check decides: 1 point in all" in text


def test_the_build_writes_the_pages_without_a_kernel_and_finds_old_ones(tmp_path, capsys):
    root = course.copy_built_fixture(tmp_path / "course")
    page = root / "docs" / "teaching" / "91.md"
    built = page.read_bytes()
    notebook = root / "notebooks" / "91_second.ipynb"
    notebook.write_text("untouched")
    page.write_text("edited")
    assert build.main(["--check", "--root", str(root)]) == 1
    assert "teaching/91.md: does not match its master" in capsys.readouterr().err
    assert build.main(["--texts", "91", "--root", str(root)]) == 0
    assert page.read_bytes() == built
    assert notebook.read_text() == "untouched"
    (root / "docs" / "teaching" / "92.md").write_text("left over")
    notebook.write_bytes((course.built_fixture() / "notebooks" / notebook.name).read_bytes())
    assert build.main(["--check", "--root", str(root)]) == 1
    assert "teaching/92.md: has no master" in capsys.readouterr().err


def test_the_assistants_page_quotes_sentences_of_checks_and_shuts_the_solutions():
    page = (course.ROOT / "AGENTS.md").read_text(encoding="utf-8")
    assert "CONTRIBUTING.md" in page.partition("\n")[0]
    said = {says for path in MASTERS for e in read_lesson(path).exercises for says, _ in e.wrong}
    quoted = re.findall(r'^\* "([^"]+)":', page, re.M)
    assert len(quoted) == 3
    assert set(quoted) <= said
    shut = page.partition("**Never open")[2].partition("\n\n")[0]
    for folder in ("solutions/", "llama_adapter_edu/course/reference/", "docs/teaching/"):
        assert f"`{folder}`" in shut
        assert (course.ROOT / folder).is_dir()
