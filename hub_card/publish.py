"""
Puts models on the Hub: `unif2ace publish`, `push_to_hub` of trainer and pipeline and the training callback all come
here.

A repository is written in two commits. The first holds weights and code; the second the card, whose snippets name the
first one's hash, so that they load exactly what was published. A manifest in the repository says what was written:
with it a later run knows its own files, uploads what changed, deletes what it no longer writes, and leaves the rest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library huggingface_hub stands on: also what a broken connection raises
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from . import LAYOUTS
from .card import Card
from .layouts import ADAPTER, Checkpoint, Content, repository_files, to_json


MANIFEST = "unif2ace_publish.json"
_TIMEOUT = 30.0  # seconds for the first question to the Hub
# what every repository has from the start
_FROM_THE_HUB = (".gitattributes",)
# weights of an earlier model that would be loaded instead of ours, or beside it
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


@dataclass
class RepositoryPlan:
    """
    What will happen to one repository.

    Args:
        repo_id (`str`): Its id.
        layout (`str`): `"transformers"`, `"diffusers"` or `"adapter"`.
        files (`dict[str, Path | bytes]`): All its files, without the card.
        head (`str`, *optional*): Newest commit there; `None` if the repository is to be made.
        manifest (`dict`): What an earlier run wrote; empty if none did.
        deleted (`list[str]`): Files that will be deleted.
        hashes (`dict[str, str]`): SHA-256 of each file.
        unreachable (`bool`): Whether the Hub could not be asked, which only a dry run puts up with.
    """

    repo_id: str
    layout: str
    files: dict[str, Content]
    head: str | None = None
    manifest: dict = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    unreachable: bool = False

    @property
    def changed(self) -> list[str]:
        """Files that are new or differ from those that are there."""
        known = self.manifest.get("files", {})
        return [path for path in self.files if known.get(path) != self.hashes[path]]

    def __str__(self) -> str:
        state = "new repository" if self.head is None else f"updates {self.head[:8]}"
        if self.unreachable:
            state = "the Hub cannot be reached, so what is there is not known"
        changed = set(self.changed)
        size = readable(sum(map(size_of, self.files.values())))
        lines = [f"{self.repo_id}  ({self.layout} layout, {state}): {len(self.files)} files, {size}"]
        for path, content in self.files.items():
            what = "upload" if path in changed else "same"
            lines.append(f"  {what:7} {readable(size_of(content)):>10}  {path}")
        lines += [f"  delete              {path}" for path in self.deleted]
        uploaded = readable(sum(size_of(self.files[path]) for path in changed))
        return "\n".join([*lines, f"  to upload: {len(changed)} files, {uploaded}, and the card"])


@dataclass(frozen=True)
class PublishedRepository:
    """
    A repository after it was written.

    Args:
        repo_id (`str`): Its id.
        layout (`str`): `"transformers"`, `"diffusers"` or `"adapter"`.
        url (`str`): Its address.
        revision (`str`): The commit of weights and code: what to pin.
        uploaded (`list[str]`): Files that were uploaded.
        deleted (`list[str]`): Files that were deleted.
    """

    repo_id: str
    layout: str
    url: str
    revision: str
    uploaded: list[str]
    deleted: list[str]


def publish(
    model: str | os.PathLike,
    repo_id: str,
    *,
    layouts: tuple[str, ...] = LAYOUTS,
    private: bool | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    run: str | os.PathLike | None = None,
    license: str | None = None,
    base_model: str | None = None,
    quality: str | os.PathLike | None = None,
    results: Sequence[str | os.PathLike] | None = None,
    datasets: Sequence[str] | None = None,
    samples: int = 6,
    token: str | None = None,
    report: Callable[[str], None] = print,
) -> list[PublishedRepository]:
    r"""
    Put a model or an adapter on the Hub, with its code, its processor and a card that is made from its run.

    A model gets two repositories: `repo_id` in transformers' layout and `repo_id` + `"-diffusers"` in diffusers'. An
    adapter gets one. A run that was interrupted goes on where it stopped: large files that arrived are not sent again.

    Args:
        model (`str` or `os.PathLike`): Folder of a trained model, in either layout, or of a PEFT adapter.
        repo_id (`str`): `"ORG/NAME"`, or `"NAME"` under the own account.
        layouts (`tuple[str]`, *optional*, defaults to both): Which of `"transformers"` and `"diffusers"` to write.
        private (`bool`, *optional*): Whether a new repository is private; the account's default when not given.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to write into a repository that this function did not make. Its other files stay, weights excepted.
        dry_run (`bool`, *optional*, defaults to `False`): Report what would be done, and do nothing.
        run (`str` or `os.PathLike`, *optional*): Folder of the training run; by default the one around the model.
        license (`str`, *optional*):
            Licence of the weights, as the Hub names it (`"apache-2.0"`); needed unless the model's card names one.
        base_model (`str`, *optional*): Hub id of what this was trained from; for an adapter the model that it changes.
        quality (`str` or `os.PathLike`, *optional*):
            Results like those of `results`, which are shown if they were measured on these weights and passed over if
            not; `quality.json` in the run's folder when not given.
        results (`list[str or os.PathLike]`, *optional*):
            Files that `unif2ace evaluate` wrote, for the card (with slices by group of people) and `.eval_results/`;
            by default those of these weights in `results/`, here and in the run's folder.
        datasets (`list[str]`, *optional*):
            Hub ids of what this was trained on; by default the known ones that the run's configuration names.
        samples (`int`, *optional*, defaults to 6): Pictures to generate for the card; 0 for none.
        token (`str`, *optional*): Access token; the one of `hf auth login` when not given.
        report (`Callable`, *optional*, defaults to `print`): Gets what will be uploaded, before it is.

    Returns:
        `list[PublishedRepository]`: one for each repository; empty for a dry run.

    Raises:
        FileNotFoundError: if there is no such model, or it lacks a file.
        FileExistsError: if a repository exists that this function did not write, and `overwrite` is not given.
        ValueError: if the licence is unknown, or an argument does not fit.
        OSError: if the Hub cannot be reached, or refuses.
    """
    checkpoint = Checkpoint.read(model)
    wanted = (ADAPTER,) if checkpoint.is_adapter else _check_layouts(layouts)
    card = Card(
        checkpoint,
        run=run,
        license=license,
        base_model=base_model,
        quality=quality,
        samples=samples,
        results=results,
        datasets=datasets,
    )
    api = HfApi(token=token)
    with _clear_errors(repo_id):
        repo_id = _full_name(api, repo_id, dry_run)
        names = {layout: f"{repo_id}-diffusers" if layout == "diffusers" else repo_id for layout in wanted}
        plans = [
            _plan(
                api, name, layout, repository_files(checkpoint, layout, card.base_model), private, overwrite, dry_run
            )
            for layout, name in names.items()
        ]
        for plan in plans:
            report(str(plan))
        if dry_run:
            return []
        card.draw()
        # the card of each repository links to the others, so it is written when all of them have their weights
        revisions = {plan.layout: _upload_model(api, plan, private) for plan in plans}
        return [_upload_card(api, plan, revisions, names, card) for plan in plans]


def _check_layouts(layouts: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [layout for layout in layouts if layout not in LAYOUTS]
    if unknown or not layouts:
        raise ValueError(f"layouts are {tuple(layouts)!r}, expected {' or '.join(map(repr, LAYOUTS))}, or both")
    return tuple(layouts)


def _full_name(api: HfApi, repo_id: str, dry_run: bool) -> str:
    owner, slash, name = repo_id.rpartition("/")
    if not name or "/" in owner:
        raise ValueError(f"the repository is {repo_id!r}, expected ORG/NAME or NAME")
    return repo_id if slash or dry_run else f"{api.whoami()['name']}/{name}"


def _plan(
    api: HfApi,
    repo_id: str,
    layout: str,
    files: dict[str, Content],
    private: bool | None,
    overwrite: bool,
    dry_run: bool,
) -> RepositoryPlan:
    plan = RepositoryPlan(repo_id, layout, files, hashes={path: sha256_of(content) for path, content in files.items()})
    try:
        info = api.model_info(repo_id, timeout=_TIMEOUT)
    except RepositoryNotFoundError:
        return plan
    except HfHubHTTPError:  # the Hub answered
        raise
    except (OfflineModeIsEnabled, ConnectionError, HTTPError):
        if dry_run:  # what would be uploaded can be said without the Hub
            plan.unreachable = True
            return plan
        raise
    plan.head = info.sha
    if private and not info.private:
        raise FileExistsError(f"{repo_id} exists and is public, but private was asked for: change it on the Hub first")
    there = {sibling.rfilename for sibling in info.siblings} - set(_FROM_THE_HUB)
    plan.manifest = _read_manifest(api, repo_id, info.sha)
    if there and not plan.manifest and not overwrite:
        raise FileExistsError(
            f"{repo_id} has {len(there)} files and was not written by unif2ace: choose another name, or write into it "
            "with overwrite=True (--overwrite)"
        )
    own = set(plan.manifest.get("files", {}))
    weights = {path for path in there if path.endswith(_WEIGHTS)}
    plan.deleted = sorted(((own | weights) & there) - set(files))
    return plan


def _read_manifest(api: HfApi, repo_id: str, revision: str) -> dict:
    try:
        path = api.hf_hub_download(repo_id, MANIFEST, revision=revision)
    except RemoteEntryNotFoundError:
        return {}
    manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    return manifest if manifest.get("written_by") == "unif2ace" else {}


def _upload_model(api: HfApi, plan: RepositoryPlan, private: bool | None) -> str:
    """The first commit; returns its hash, or that of the earlier one if nothing changed since."""
    revision = plan.manifest.get("revision")
    if revision is not None and not plan.changed and not plan.deleted:
        return revision
    if plan.head is None:
        api.create_repo(plan.repo_id, private=private, exist_ok=True)
    manifest = _manifest(plan, revision=None)
    additions = {path: plan.files[path] for path in plan.files} | {MANIFEST: manifest}
    operations = [CommitOperationAdd(path, _openable(content)) for path, content in additions.items()]
    operations += [CommitOperationDelete(path, is_folder=False) for path in plan.deleted]
    message = f"Weights and code, {plan.layout} layout" if plan.layout != ADAPTER else "Adapter"
    return api.create_commit(plan.repo_id, operations, commit_message=message, parent_commit=plan.head).oid


def _upload_card(
    api: HfApi, plan: RepositoryPlan, revisions: dict[str, str], names: dict[str, str], card
) -> PublishedRepository:
    """The second commit: the card and its pictures, which name the first commit."""
    revision = revisions[plan.layout]
    files = card.files(plan.layout, names, revisions)
    stale = sorted(set(plan.manifest.get("card", [])) - set(files))
    additions = files | {MANIFEST: _manifest(plan, revision, card=sorted(files))}
    operations = [CommitOperationAdd(path, _openable(content)) for path, content in additions.items()]
    operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
    api.create_commit(plan.repo_id, operations, commit_message=f"Card of {revision[:8]}")
    was_there = plan.manifest.get("revision") == revision
    return PublishedRepository(
        repo_id=plan.repo_id,
        layout=plan.layout,
        url=f"{api.endpoint}/{plan.repo_id}",
        revision=revision,
        uploaded=[] if was_there else plan.changed,
        deleted=[] if was_there else plan.deleted,
    )


def _manifest(plan: RepositoryPlan, revision: str | None, card: list[str] | None = None) -> bytes:
    card = plan.manifest.get("card", []) if card is None else card
    written = {"written_by": "unif2ace", "layout": plan.layout, "revision": revision}
    return to_json(written | {"files": plan.hashes, "card": card})


def _openable(content: Content) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def size_of(content: Content) -> int:
    """Bytes of a file or of a content."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def readable(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"


def sha256_of(content: Content) -> str:
    """Hash of a file or of a content."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _clear_errors(repo_id: str) -> Iterator[None]:
    """Turns what the Hub's client raises into one sentence."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository's name: {error}") from error
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE is set, so nothing can be published: unset it") from error
    except (LocalTokenNotFoundError, HTTPError, RuntimeError) as error:
        # an upload in a thread raises a RuntimeError
        cause = error if isinstance(error, (LocalTokenNotFoundError, HTTPError)) else error.__cause__
        answered = isinstance(cause, HfHubHTTPError)
        if isinstance(cause, LocalTokenNotFoundError) or (
            answered and cause.response is not None and cause.response.status_code == 401
        ):
            raise OSError(
                f"the Hub does not know who publishes {repo_id}: log in with `hf auth login`, or set HF_TOKEN to a "
                "token that may write"
            ) from error
        if answered:
            raise OSError(
                f"the Hub refused while {repo_id} was published ({cause}): what arrived is kept, run it again"
            ) from error
        if isinstance(cause, HTTPError):
            raise OSError(
                f"the Hub cannot be reached, or the connection broke off while {repo_id} was published ({cause}): "
                "what arrived is kept, check the connection and run it again"
            ) from error
        raise
