"""
Lets tests that others wrote judge our model: transformers' model and processor testers, PEFT's common tests, and
`transformers-mlinter`.

    python tests/judges/run.py                  # all judges, table in the end
    python tests/judges/run.py model processor  # some of them
    python tests/judges/run.py --write docs/judges.md  # the table goes there too

The tests are taken from the source distributions of the installed releases and never copied into this repository. A
judge objects if a test fails, if one is skipped for a reason that `accepted.json` does not know, or if fewer tests ran
than are noted there: the list of skips cannot grow silently, nor the list of tests shrink. A finding of the linter
needs a waiver there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MODEL = REPOSITORY / "modeling_unif2ace"
ACCEPTED = HERE / "accepted.json"
SOURCES = {name: version(name) for name in ("transformers", "peft")}  # the tests of what is installed
LINTER = "transformers-mlinter==0.1.5"
NO_TESTS = 5  # pytest's exit code when an expression matches nothing of this judge

# What the tests of transformers import and the source distribution lacks. Written here, not copied.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    all_generative_model_classes = ()\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = "
    '{"return_dict": False, "output_hidden_states": True, "problem_type": "regression"}\n',
    "utils/__init__.py": "",
    "utils/fetch_hub_objects_for_ci.py": """\
import tempfile
from PIL import Image

def url_to_local_path(url):
    if not url.endswith((".png", ".jpg")):
        return url
    with tempfile.NamedTemporaryFile(suffix=url[-4:], delete=False) as file:
        Image.effect_noise((64, 48), 50).convert("RGB").save(file)
    return file.name
""",
    "pytest.ini": "[pytest]\nfilterwarnings = ignore\naddopts = -p no:cacheprovider\n"
    "markers =\n    regression\n    single_gpu_tests\n    multi_gpu_tests\n",
}
# judge: (source whose tests it needs, our tests that apply them)
JUDGES = {
    "model": ("transformers", "judge_model.py::UniF2aceModelTest"),
    "text_model": ("transformers", "judge_model.py::UniF2aceTextModelTest"),
    "training": ("transformers", "judge_model.py::UniF2aceTrainingTest"),
    "processor": ("transformers", "judge_processor.py"),
    "peft": ("peft", "judge_peft.py"),
    "linter": (None, None),
}
# Where `--write` puts the table.
BEGIN, END = "<!-- written by tests/judges/run.py --write -->\n", "<!-- until here -->\n"


@dataclass
class Verdict:
    """What a judge found: names of tests, with reasons where there are some."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def unpack(source: str, folder: Path) -> Path:
    """The folder with the tests of a release, downloaded by pip if it is not there."""
    suite = folder / f"{source}-{SOURCES[source]}-suite"
    if (suite / "pytest.ini").is_file():
        return suite
    archive = folder / f"{source}-{SOURCES[source]}.tar.gz"
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps"]
        command += ["--no-build-isolation", "--dest", str(folder), f"{source}=={SOURCES[source]}"]
        subprocess.run(command, check=True)
    with tarfile.open(archive) as files:
        top = f"{source}-{SOURCES[source]}/"
        members = [member for member in files if member.name.startswith(f"{top}tests/")]
        for member in members:
            member.name = member.name.removeprefix(top)
        files.extractall(suite, members, filter="data")
    for name, text in STUBS.items():
        path = suite / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return suite


def report_of(judge: str, folder: Path) -> Path:
    """Where the last report of a judge lies."""
    return folder / (f"{judge}.json" if judge == "linter" else f"{judge}.xml")


def run_tests(judge: str, folder: Path, expression: str | None) -> Verdict:
    """Run our tests for a judge inside its suite and read what pytest wrote about them."""
    source, tests = JUDGES[judge]
    suite = unpack(source, folder)
    file = tests.partition("::")[0]
    shutil.copy(HERE / file, suite / file)  # outside of this package, whose root pytest would import a second time
    report = report_of("some" if expression else judge, folder)
    report.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(suite), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", tests, "-q", "--tb=native", f"--junitxml={report}"]
    command += ["--timeout=1800", *(["-k", expression] if expression else [])]
    finished = subprocess.run(command, cwd=suite, env=environment)
    if not report.is_file() or finished.returncode not in (0, 1, NO_TESTS):
        report.unlink(missing_ok=True)
        return Verdict(failed={judge: f"pytest ended with exit code {finished.returncode} and no report"})
    return read_report(report)


def run_linter(folder: Path) -> Verdict:
    """The linter over our model files."""
    report = report_of("linter", folder)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mlinter", "--no-cache", "--no-progress", "--output-json", str(report)]
    finished = subprocess.run([*command, str(MODEL)], capture_output=True, text=True, cwd=REPOSITORY)
    if not report.is_file():
        return Verdict(failed={"mlinter": f"no report; is {LINTER} installed? {finished.stderr[-200:]}"})
    return read_report(report)


def read_report(report: Path) -> Verdict:
    """The verdict in a JUnit file of pytest, or in the linter's JSON."""
    if report.suffix == ".json":
        return read_findings(json.loads(report.read_text(encoding="utf-8"))["findings"])
    verdict = Verdict()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = next((case.find(tag) for tag in ("failure", "error") if case.find(tag) is not None), None)
        skip = case.find("skipped")
        if problem is not None:
            verdict.failed[name] = ((problem.get("message") or "").splitlines() or ["no message"])[0][:200]
        elif skip is not None:
            verdict.skipped[name] = (skip.get("message") or "").strip()[:200]
        else:
            verdict.passed.append(name)
    return verdict


def read_findings(findings: list[dict[str, str]]) -> Verdict:
    """The linter's verdict: files without a finding passed; findings count as skipped, and object unless waived."""
    found = Counter(f"{Path(finding['path']).name}: {finding['rule']}" for finding in findings)
    waivers = accepted_of("linter")
    reasons = {name: waivers.get(name.rpartition(" ")[2], "not waived") for name in found}
    clean = {file.name for file in MODEL.glob("*.py")} - {name.partition(":")[0] for name in found}
    return Verdict(sorted(clean), reasons)


def accepted_of(judge: str) -> dict:
    """What `accepted.json` says about a judge."""
    return json.loads(ACCEPTED.read_text(encoding="utf-8"))[judge]


def new_skips(judge: str, verdict: Verdict) -> dict[str, str]:
    """
    Skips that nobody accepted. `accepted.json` names, for each judge, reasons that lie in the machine (no GPU, a
    library that is not installed) and hold for any test, and tests with the reason that holds for them alone.
    """
    accepted = accepted_of(judge)
    if judge == "linter":  # its waivers are by rule
        return {name: reason for name, reason in verdict.skipped.items() if reason == "not waived"}
    return {
        test: reason
        for test, reason in verdict.skipped.items()
        if reason not in accepted["machine"] and accepted["tests"].get(test) != reason
    }


def objections(judge: str, verdict: Verdict) -> list[str]:
    """What is wrong, a line each: failures, new skips, accepted ones that are no more, fewer tests than there were."""
    accepted = accepted_of(judge)
    lines = [f"FAILED {judge}: {test}: {reason}" for test, reason in verdict.failed.items()]
    lines += [f"NEW SKIP {judge}: {test}: {reason}" for test, reason in new_skips(judge, verdict).items()]
    gone = sorted(set(accepted.get("tests", {})) & set(verdict.passed))  # not every release has every test
    lines += [f"NO LONGER SKIPPED {judge}: {test}: remove it from {ACCEPTED.name}" for test in gone]
    least = floor_of(accepted.get("passed_at_least", {}))
    if len(verdict.passed) < least and not verdict.failed:
        lines.append(f"FEWER TESTS {judge}: {len(verdict.passed)} passed, expected at least {least}")
    return lines


def floor_of(floors: dict[str, int], release: str = SOURCES["transformers"]) -> int:
    """The fewest tests that pass with a release of transformers; one that is not named has the newest one's."""
    minor = ".".join(release.split(".")[:2])
    return floors.get(minor, list(floors.values())[-1] if floors else 0)


def table(verdicts: dict[str, Verdict]) -> str:
    """The result in Markdown: a line for each judge, then the reasons of the skips."""
    lines = ["| judge | passed | skipped | failed |", "|---|---:|---:|---:|"]
    for judge, verdict in verdicts.items():
        lines.append(f"| {judge} | {len(verdict.passed)} | {len(verdict.skipped)} | {len(verdict.failed)} |")
    reasons = Counter((judge, reason) for judge, verdict in verdicts.items() for reason in verdict.skipped.values())
    if not reasons:
        return "\n".join(lines)
    lines += ["", "| judge | skipped because | tests |", "|---|---|---:|"]
    for judge in verdicts:
        mine = [(reason, count) for (name, reason), count in reasons.most_common() if name == judge]
        lines += [f"| {judge} | {reason} | {count} |" for reason, count in mine]
    return "\n".join(lines)


def write_table(path: Path, folder: Path):
    """Put the table of every judge's last report between the two marks in a file."""
    absent = [judge for judge in JUDGES if not report_of(judge, folder).is_file()]
    if absent:
        raise SystemExit(f"{path} is left as it was: no report of {', '.join(absent)} in {folder}; let them run first")
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} is left as it was: it has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    text = table({judge: read_report(report_of(judge, folder)) for judge in JUDGES})
    path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> int:
    """Run the judges; exit code 1 if one of them objects."""
    parser = argparse.ArgumentParser(description="Let tests that others wrote judge our model.")
    parser.add_argument("judges", nargs="*", help=f"which of {', '.join(JUDGES)} (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "runs" / "judges", help="where sources go (default: %(default)s)"
    )
    parser.add_argument("-k", dest="expression", help="only tests that match, as in pytest; nothing is judged then")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table into it; of judges not run now, their last report"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.judges) - set(JUDGES))
    if unknown:
        parser.error(f"there is no judge {unknown[0]!r}, expected {', '.join(JUDGES)}")
    if options.expression and options.write:
        parser.error("--write needs whole judges: leave out -k")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = {
        judge: run_tests(judge, folder, options.expression) if JUDGES[judge][0] else run_linter(folder)
        for judge in options.judges or JUDGES
    }
    print(f"\n{table(verdicts)}\n")
    if options.expression:
        failed = [f"FAILED {judge}: {test}" for judge, verdict in verdicts.items() for test in verdict.failed]
        print("\n".join(failed))
        return 1 if failed else 0
    wrong = [line for judge, verdict in verdicts.items() for line in objections(judge, verdict)]
    print("\n".join(wrong))
    if options.write:
        write_table(options.write, folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
