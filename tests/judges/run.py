"""
Lets tests that others wrote judge our model: transformers' model and processor testers, PEFT's common tests, and
`transformers-mlinter`.

    python tests/judges/run.py                  # all judges, table in the end
    python tests/judges/run.py model processor  # some of them

The tests are taken from the source distributions of the exact releases and never copied into this repository. A judge
fails if a test fails, or if one is skipped for a reason that `accepted.json` does not know: the list cannot grow
silently. A finding of the linter needs a waiver there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
ACCEPTED = HERE / "accepted.json"
SOURCES = {"transformers": "5.23.0", "peft": "0.21.2"}
LINTER = "transformers-mlinter==0.1.5"

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
# judge: (source whose tests it needs, our file that applies them)
JUDGES = {
    "model": ("transformers", "judge_model.py"),
    "processor": ("transformers", "judge_processor.py"),
    "peft": ("peft", "judge_peft.py"),
    "linter": (None, None),
}


@dataclass
class Verdict:
    """What a judge found: names of tests, with reasons where there are some."""

    passed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


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


def run_tests(judge: str, folder: Path, arguments: list[str]) -> Verdict:
    """Run our file for a judge inside its suite and read what pytest wrote about it."""
    source, file = JUDGES[judge]
    suite = unpack(source, folder)
    shutil.copy(HERE / file, suite / file)  # outside of this package, whose root pytest would import a second time
    report = suite / f"{judge}.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(suite), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", file, "-q", f"--junitxml={report}", "--timeout=600", *arguments]
    start = time.monotonic()
    finished = subprocess.run(command, cwd=suite, env=environment)
    if not report.is_file() or finished.returncode > 1:
        return Verdict(failed={judge: f"pytest ended with exit code {finished.returncode} and no report"})
    verdict = read_report(report)
    verdict.seconds = time.monotonic() - start
    return verdict


def read_report(report: Path) -> Verdict:
    """The verdict in a JUnit file."""
    verdict = Verdict()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = next((case.find(tag) for tag in ("failure", "error") if case.find(tag) is not None), None)
        skip = case.find("skipped")
        if problem is not None:
            verdict.failed[name] = (problem.get("message") or "").splitlines()[0][:200]
        elif skip is not None:
            verdict.skipped[name] = (skip.get("message") or "").strip()[:200]
        else:
            verdict.passed += 1
    return verdict


def run_linter(folder: Path) -> Verdict:
    """The linter over our model files; its findings count as skipped, and object unless they are waived."""
    start = time.monotonic()
    report = folder / "linter.json"
    report.unlink(missing_ok=True)
    files = sorted((REPOSITORY / "modeling_unif2ace").glob("*.py"))
    command = [sys.executable, "-m", "mlinter", "--no-cache", "--no-progress", "--output-json", str(report)]
    finished = subprocess.run([*command, str(files[0].parent)], capture_output=True, text=True, cwd=REPOSITORY)
    if not report.is_file():
        return Verdict(failed={"mlinter": f"no report; is {LINTER} installed? {finished.stderr[-200:]}"})
    findings = json.loads(report.read_text(encoding="utf-8"))["findings"]
    found = Counter(f"{Path(finding['path']).name}: {finding['rule']}" for finding in findings)
    waivers = json.loads(ACCEPTED.read_text(encoding="utf-8")).get("linter", {})
    reasons = {name: waivers.get(name.rpartition(" ")[2], "not waived") for name in found}
    clean = len({file.name for file in files} - {name.partition(":")[0] for name in found})
    return Verdict(clean, reasons, {}, time.monotonic() - start)


def new_skips(judge: str, verdict: Verdict) -> dict[str, str]:
    """
    Skips that nobody accepted. `accepted.json` names, for each judge, reasons that lie in the machine (no GPU, a
    library that is not installed) and hold for any test, and tests with the reason that holds for them alone.
    """
    accepted = json.loads(ACCEPTED.read_text(encoding="utf-8"))[judge]
    if judge == "linter":  # its waivers are by rule
        return {name: reason for name, reason in verdict.skipped.items() if reason == "not waived"}
    return {
        test: reason
        for test, reason in verdict.skipped.items()
        if reason not in accepted["machine"] and accepted["tests"].get(test) != reason
    }


def table(verdicts: dict[str, Verdict]) -> str:
    """The result in Markdown: a line for each judge, then the reasons of the skips."""
    lines = ["| judge | passed | skipped | failed | seconds |", "|---|---:|---:|---:|---:|"]
    for judge, verdict in verdicts.items():
        counts = f"{verdict.passed} | {len(verdict.skipped)} | {len(verdict.failed)}"
        lines.append(f"| {judge} | {counts} | {verdict.seconds:.0f} |")
    reasons = Counter((judge, reason) for judge, verdict in verdicts.items() for reason in verdict.skipped.values())
    lines += ["", "| judge | skipped because | tests |", "|---|---|---:|"]
    lines += [f"| {judge} | {reason} | {count} |" for (judge, reason), count in reasons.most_common()]
    return "\n".join(lines)


def main() -> int:
    """Run the judges; exit code 1 if one of them objects."""
    parser = argparse.ArgumentParser(description="Let tests that others wrote judge our model.")
    parser.add_argument("judges", nargs="*", help=f"which of {', '.join(JUDGES)} (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "runs" / "judges", help="where sources go (default: %(default)s)"
    )
    parser.add_argument("-k", dest="expression", help="only tests that match, as in pytest; nothing is judged then")
    options = parser.parse_args()
    unknown = sorted(set(options.judges) - set(JUDGES))
    if unknown:
        parser.error(f"there is no judge {unknown[0]!r}, expected {', '.join(JUDGES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    arguments = ["-k", options.expression] if options.expression else []
    verdicts = {}
    for judge in options.judges or JUDGES:
        tests = JUDGES[judge][0]
        verdicts[judge] = (
            run_tests(judge, options.folder.resolve(), arguments) if tests else run_linter(options.folder)
        )
    print(f"\n{table(verdicts)}\n")
    objections = 0
    for judge, verdict in verdicts.items():
        for test, reason in verdict.failed.items():
            print(f"FAILED {judge}: {test} {reason}")
        for test, reason in new_skips(judge, verdict).items():
            print(f"NEW SKIP {judge}: {test}: {reason}")
            objections += 1
        objections += len(verdict.failed)
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main())
