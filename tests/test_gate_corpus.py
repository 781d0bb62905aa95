"""The gate against the corpus: every hostile folder is refused for its reason, every clean one passes, nothing runs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import corpus_adapters
import corpus_bytes
import corpus_content
import corpus_disguise
import corpus_folders
import corpus_layout
import msgspec
import pytest
from weight_files import MARKER

from freehold import weights
from freehold.weights import verify

FAMILIES = (corpus_adapters, corpus_bytes, corpus_content, corpus_disguise, corpus_folders, corpus_layout)
CASES = [case for family in FAMILIES for case in family.CASES]
# Of the machine or of the folder as a whole: test_hostile_weights.py makes them.
EMITTED = (
    r"""(?:refuse\(\s*[^,"]+|Malformed\(|_finding\(\s*[^,"]+|rule=),?\s*"([a-z0-9-]+)"[,)]""",
    r'"((?:template|token|tokenizer|adapter|sentencepiece)-[a-z]+)"',  # passed on as values
)
REVIEWED = r"""(?:review\(\s*[^,"]+,|rule ==)\s*"([a-z-]+)\""""  # they refuse nothing
ELSEWHERE = {"unreadable", "too-many-files", "unjudged"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")
def test_case(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    verdict = verify(case.build(folder) or folder)
    refusing = {finding.rule for finding in verdict.findings if not finding.review}
    if case.rule is None:
        assert (verdict.accepted, refusing) == (True, set())
    else:
        assert case.rule in refusing
        assert not verdict.accepted
    assert all(finding.path and finding.why.isprintable() and finding.fix for finding in verdict.findings)
    msgspec.json.encode(verdict)  # whatever the names were
    assert not MARKER.exists()


def test_names_of_cases_are_unique():
    assert not [each for each, count in Counter((case.family, case.name) for case in CASES).items() if count > 1]


def test_every_rule_has_three_hostile_cases():
    """A rule that nothing in the corpus breaks could be wrong, or dead, without anybody noticing."""
    sources = Path(weights.__file__).parent
    rooms = [
        *sources.glob("gate/*.py"),
        *(sources / f"{name}.py" for name in ("files", "reading", "gguf", "safetensors")),
    ]
    code = "\n".join(room.read_text() for room in rooms)
    emitted = {rule for pattern in EMITTED for rule in re.findall(pattern, code)}
    reviewed = set(re.findall(REVIEWED, code))
    cases = Counter(case.rule for case in CASES)
    assert {rule for rule in emitted - reviewed - ELSEWHERE if cases[rule] < 3} == set()
    assert set(cases) - emitted - {None} == set()
