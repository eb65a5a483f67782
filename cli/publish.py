"""`unif2ace publish`."""

import argparse

from ..hub_card import LAYOUTS


EXAMPLES = """\
examples:
  unif2ace publish runs/unif2ace/final --repo me/faces --license apache-2.0 --dry-run
  unif2ace publish runs/unif2ace/final --repo me/faces --license apache-2.0 --private
  unif2ace publish runs/lora --repo me/faces-lora --base-model me/faces --license apache-2.0

A model gets two repositories: me/faces for transformers and me/faces-diffusers for diffusers. Log in first with
`hf auth login`. A run that was interrupted goes on when it is called again.
"""


def add_arguments(parser: argparse.ArgumentParser):
    """The command's arguments."""
    parser.add_argument("model", help="folder of a trained model or of a PEFT adapter, or unif2ace-faces")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository on the Hub; made if needed")
    parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and stop")
    parser.add_argument(
        "--layout", choices=(*LAYOUTS, "both"), default="both", help="which repositories (default: %(default)s)"
    )
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, as the Hub names it: apache-2.0")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="what it was trained from; for an adapter its model")
    parser.add_argument(
        "--datasets", nargs="+", metavar="ORG/NAME", help="what it was trained on (default: what the run says)"
    )
    parser.add_argument(
        "--run", dest="run_folder", metavar="FOLDER", help="the training run (default: around the model)"
    )
    parser.add_argument("--quality", metavar="FILE", help="what benchmarks/quality.py measured on these weights")
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="what `unif2ace evaluate` measured on these weights (default: those in results/, here and in the run)",
    )
    parser.add_argument(
        "--samples", type=int, choices=range(9), default=6, metavar="0-8", help="pictures on the card (default: 6)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a repository that unif2ace did not make")


def run(arguments: argparse.Namespace):
    """Publish, and say where."""
    arguments.console.stage(f"looking at {arguments.model}")
    from ..hub_card.publish import publish

    published = publish(
        arguments.model,
        arguments.repo,
        layouts=LAYOUTS if arguments.layout == "both" else (arguments.layout,),
        private=arguments.private,
        overwrite=arguments.overwrite,
        dry_run=arguments.dry_run,
        run=arguments.run_folder,
        license=arguments.license,
        base_model=arguments.base_model,
        quality=arguments.quality,
        results=arguments.results,
        datasets=arguments.datasets,
        samples=arguments.samples,
    )
    for repository in published:
        arguments.console.result(
            f"{repository.url}  revision {repository.revision}  {len(repository.uploaded)} files uploaded",
            url=repository.url,
            revision=repository.revision,
            uploaded=repository.uploaded,
            dry_run=arguments.dry_run,
        )
    if arguments.dry_run:
        arguments.console.stage("dry run: nothing was uploaded")
