"""`freehold scores`: the views, and a company's own figures in the book."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from freehold.cli.main import cli
from freehold.errors import BadRequest, Unknown
from freehold.ledger import report
from freehold.plan.cohorts import COLUMNS, MOST_BYTES

HEAD = ",".join(COLUMNS)
LINES = [
    f"{model},GPQA-Diamond,,{value},thinking,Bench House,independent,licence 2026-11,2026-11-01,,percent,high"
    for model, value in (("qwen3-32b", 66.8), ("gemma-3-27b", 42.8))
]
OWN = "own.gpqa-diamond.bench-house.2026-11-01.thinking"


class Project(NamedTuple):
    folder: Path

    def __call__(self, *words: str):
        return CliRunner().invoke(cli, ["-c", str(self.folder / "freehold.toml"), *words])


@pytest.fixture
def project(tmp_path):
    """A project of its own; what is asked of it is answered by the command line in this process."""
    (tmp_path / "freehold.toml").write_text("")
    return Project(tmp_path)


def written(folder: Path, name: str, *lines: str) -> str:
    path = folder / name
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return str(path)


def show(*words: str):
    return CliRunner().invoke(cli, ["scores", *words])


def test_the_overview_counts_what_there_is():
    said = show().output
    assert said.startswith("6,176 scores in ")
    assert "22 of 117 models have none" in said
    assert json.loads(show("--json").output)["scores"] == 6176


def test_coding_and_german_rank_inside_one_cohort_and_list_what_is_composed():
    said = show("--task", "coding").output
    assert "NVIDIA (own runs of a competitor model)" in said
    assert "competitor-run" in said
    assert "scaffold not stated" in said
    assert "## Aider; 5dc9490bb35f; measured 2024-12-25 to 2025-07-17; without thinking" in said
    assert "Alibaba" not in said
    assert "and never ranked with these" in said
    german = " ".join(show("--lang", "de").output.split())
    assert "MEAN: mean percentile inside each of EuroEval reading comprehension, EuroEval common sense" in german
    assert "24 ranked; 93 models have no score" in german
    assert "no source" in german
    panel = json.loads(show("--lang", "german", "--json").output)["panels"][0]
    assert len(panel["composite_of"]) == 3
    assert all(each["source"] for cohort in panel["cohorts"] for each in cohort["entries"])


def test_publishers_have_a_block_of_their_own():
    said = show("--task", "coding", "--publisher").output
    assert "DeepSeek; 2025-01-20" in said
    assert "NVIDIA (own runs" not in said
    assert "measured by others: leave out --publisher" in said


def test_everything_of_one_model_apart_by_who_measured():
    said = show("--model", "Qwen/Qwen3-32B", "--sources").output
    others, publishers = said.index("## measured by others"), said.index("## by its publisher")
    assert others < said.index("EuroEval knowledge") < publishers
    assert "github:EuroEval/leaderboards@" in said
    assert "pair baseline, not a capability score" in said
    assert "mode not stated" in said


def test_one_cohort_in_full_and_wrong_names():
    said = show("--cohort", "euroeval-knowledge.german.2026-04-20.without-thinking", "--sources").output
    assert "24 ranked; 93 models have no score; near-ties grouped where the printed 95 %" in said
    assert "leaderboards/german_all.csv" in said
    assert isinstance(show("--cohort", "euroeval-knowledge.germ").exception, Unknown)
    assert show("--lang", "de", "--task", "coding").exit_code == 2


def test_own_figures_go_into_the_book_and_out_and_the_trail_has_both(project):
    path = written(project.folder, "house.csv", *LINES)
    assert "imported 2 scores" in project("scores", "import", path).output
    assert "your own figures; Bench House" in project("scores", "--task", "reasoning").output
    assert f"{OWN}>=50" not in project("plan", "qwen3-32b", "--cards", "1xH100", "--floor", f"{OWN}>=50").output
    refused = project("plan", "gemma-3-27b", "--cards", "1xH100", "--floor", f"{OWN}>=50", "--json")
    (out,) = json.loads(refused.stdout)["choice"]["refusals"]
    assert out["reason"] == f"quality: 42.8 ± 6.9 in {OWN} by Bench House, at least 50 is asked"
    assert isinstance(project("scores", "import", path).exception, BadRequest)  # there is one of that name
    written(project.folder, "house.csv", LINES[0])
    assert "imported 1 scores" in project("scores", "import", path, "--replace").output
    assert "removed 'house'" in project("scores", "remove", "house").output
    assert isinstance(project("scores", "remove", "house").exception, Unknown)
    with report.reading(project.folder / ".freehold") as db:
        events = report.events(db, 10, kind="scores.*")
        assert report.imported_scores(db) == []
    assert [each["kind"] for each in events] == ["scores.imported", "scores.imported", "scores.removed"]
    assert events[1]["detail"]["count"] == 1
    assert events[1]["detail"]["sha256"] == sha256(Path(path).read_bytes()).hexdigest()


def test_the_hash_in_the_trail_is_that_of_the_file(project):
    path = project.folder / "excel.csv"
    path.write_bytes("\ufeff".encode() + "\r\n".join([HEAD, *LINES]).encode())
    assert "imported 2 scores" in project("scores", "import", str(path)).output
    with report.reading(project.folder / ".freehold") as db:
        (event,) = report.events(db, 10, kind="scores.*")
    assert event["detail"]["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert "2 ranked" in project("scores", "--cohort", OWN).output


def test_a_bad_line_is_named_and_nothing_is_imported(project):
    bad = [
        LINES[0],
        "nobody,B,,1,,X,own,s,2026-01-02,,percent,high",
        "qwen3-8b,=1+1,,1,,X,own,s,2026-01-02,,percent,high",
        "a,b",
    ]
    said = project("scores", "import", written(project.folder, "bad.csv", *bad))
    assert isinstance(said.exception, BadRequest)
    for words in ("bad.csv line 3: no model `nobody`", "line 4: `benchmark` begins like a formula", "line 5: 2 cells"):
        assert words in said.stderr
    assert not (project.folder / ".freehold" / "book.db").exists()


def test_one_figure_of_a_model_in_a_cohort_and_one_unit_in_all_imports(project):
    assert "imported 2" in project("scores", "import", written(project.folder, "house.csv", *LINES)).output
    again = project("scores", "import", written(project.folder, "copy.csv", LINES[0].replace("66.8", "99")))
    assert "line 2: the same as one there is" in again.stderr
    other = LINES[0].replace("qwen3-32b", "phi-4").replace("66.8", "0.7").replace("percent", "fraction")
    said = project("scores", "import", written(project.folder, "share.csv", other))
    assert f"{OWN} is already GPQA-Diamond in percent by Bench House" in said.stderr
    assert "imported 2" in project("scores", "import", str(project.folder / "house.csv"), "--replace").output
    assert "2 ranked" in project("scores", "--cohort", OWN).output


def test_what_never_ends_is_not_read_to_its_end(project):
    device = project.folder / "zero.csv"
    device.symlink_to("/dev/zero")
    assert "larger than 4 MiB" in str(project("scores", "import", str(device)).exception)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xff\xfe\x00"),
        ("a.csv", b""),
        ("a.csv", HEAD.encode()),
        ("a.csv", b'"' * 99),
        ("a.csv", b"x" * (MOST_BYTES + 1)),
        ("..csv", b""),
        ("a\x1b[2J.csv", HEAD.encode()),
        ("a.\x1b[2J", HEAD.encode()),
    ],
)
def test_what_is_no_table_is_refused(project, name, content):
    path = project.folder / name
    path.write_bytes(content)
    said = project("scores", "import", str(path))
    assert isinstance(said.exception, BadRequest)
    assert said.exception.hint


def test_a_daemon_that_runs_writes_the_import_and_says_who_asked(team):
    team.write()
    team.serve()
    written(team.folder, "house.csv", *LINES)
    quotes = '""' * 60  # in JSON twice as long
    many = [
        LINES[0].replace("GPQA-Diamond", f"B{i}").replace(",,percent", f',"{quotes}",percent') for i in range(16_000)
    ]
    written(team.folder, "many.csv", *many)
    assert "imported 16,000 scores" in team.run("scores", "import", "many.csv")
    assert "imported 2 scores" in team.run("scores", "import", "house.csv")
    assert "2 ranked" in team.run("scores", "--cohort", OWN)
    team.run("scores", "import", "house.csv", code=2)
    assert "removed" in team.run("scores", "remove", "house")
    with report.reading(team.state) as db:
        (_, first, last) = report.events(db, 10, kind="scores.*")
    assert (first["kind"], last["kind"]) == ("scores.imported", "scores.removed")
    assert first["actor"] != "freehold"
