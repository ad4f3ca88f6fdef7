"""The drop folder: new raw files are registered where they lie, once they have stopped growing (ingest_sensor).

What is known is noted beside Dagster's files (`incoming.tsv`: size, time, verdict, path), so that a tick looks only at
folders that changed. A bad file is noted with its reason and keeps nobody out; replaced by another, it is tried again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lap_assets.errors import BadInput, LapError
from lap_assets.operations.ingest import SUFFIXES, ingest_frames
from lap_assets.operations.workspace import Workspace

NOTE = "incoming.tsv"
INGESTED = "ingested"
MAX_BYTES = 4 << 30  # hashed and registered in one tick
MAX_PROBLEMS = 3  # after so many that are not the files' fault the rest waits for the next tick
Stamp = tuple[int, int]  # bytes, nanoseconds since 1970


@dataclass
class Watch:
    """What is remembered from tick to tick: folders by the time they changed, and files that may still grow."""

    folders: dict[str, int] = field(default_factory=dict)
    growing: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> "Watch":
        """From a cursor; a broken one means that everything is looked at again."""
        try:
            found = json.loads(text or "{}")
            growing = {name: (int(size), int(changed)) for name, (size, changed) in found.get("growing", {}).items()}
            return cls({name: int(changed) for name, changed in found.get("folders", {}).items()}, growing)
        except (ValueError, TypeError, AttributeError):
            return cls()

    def write(self) -> str:
        """The cursor."""
        return json.dumps({"folders": self.folders, "growing": self.growing}, separators=(",", ":"), sort_keys=True)


@dataclass
class Arrival:
    """What a look at the drop folder did."""

    ingested: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    growing: int = 0

    def describe(self) -> str:
        """One line."""
        text = f"{len(self.ingested)} files ingested, {len(self.rejected)} set aside, {self.growing} may still grow"
        first = next(iter(self.rejected.items()), None)
        return f"{text}; {first[0]}: {first[1]}" if first else text


def find_folder(space: Workspace) -> Path:
    """The drop folder of a repository."""
    return space.root / space.settings.lap.drop_folder


def take_in(space: Workspace, watch: Watch) -> Arrival:
    """Register the files of the drop folder that have not changed since the last look; `watch` is brought up to date.

    Raises `BadInput` where the camera of the settings is unknown.
    """
    top, note, arrival = find_folder(space), space.root / "dagster" / NOTE, Arrival()
    known, bad = read_known(note)
    # written over where it lies, a file does not change its folder
    restless = {str(Path(file).parent) for file in (*watch.growing, *bad)}
    ready: dict[str, Stamp] = {}
    seen: dict[str, Stamp] = {}
    folders: dict[str, int] = {}
    for folder, changed in walk_folders(top):
        name = str(folder.relative_to(top))
        folders[name] = changed
        if watch.folders.get(name) == changed and name not in restless:
            continue
        for path, stamp in list_frames(folder):
            file = str(path.relative_to(top))
            if known.get(file) == stamp:
                continue
            if watch.growing.get(file) == stamp and sum(size for size, _ in ready.values()) < MAX_BYTES:
                ready[file] = stamp
            else:
                seen[file] = stamp
    watch.folders, watch.growing, arrival.growing = folders, seen, len(seen)
    problems: list[LapError] = []
    for file, stamp in ready.items():
        try:
            reason = register(space, top / file)
        except LapError as error:  # a locked database, an id nobody can use: it is tried again, the others go on
            problems.append(error)
            watch.growing[file] = stamp
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        write_known(note, file, stamp, reason)
        if reason:
            arrival.rejected[file] = reason
        else:
            arrival.ingested.append(file)
    if problems and not arrival.ingested:
        raise problems[0]
    return arrival


def register(space: Workspace, path: Path) -> str:
    """Register one raw file; why it was set aside, or an empty text. Raises `LapError` where that is not its fault."""
    try:
        outcome = ingest_frames(space, [path], space.settings.lap.drop_camera, "raw")
    except LapError:
        raise
    except Exception as error:  # bytes that no reader was prepared for: set aside, so that the others go on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        space.repo.append_journal({"kind": "rejected", "path": str(path), "reason": reason})
        return reason
    return "; ".join(one.reason for one in outcome.rejected)


def walk_folders(top: Path) -> Iterator[tuple[Path, int]]:
    """A folder and those below it, sorted, with the time of their last change; hidden ones left out."""
    if not top.is_dir():
        return
    yield top, top.stat().st_mtime_ns
    for entry in sorted(top.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from walk_folders(entry)


def list_frames(folder: Path) -> Iterator[tuple[Path, Stamp]]:
    """FITS files of a folder, sorted, with size and time; hidden ones (as rsync writes them) left out."""
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file():
            found = path.stat()
            yield path, (found.st_size, found.st_mtime_ns)


def read_known(note: Path) -> tuple[dict[str, Stamp], set[str]]:
    """Files registered or set aside already, as they were then, and the latter; a line cut short is passed over."""
    known: dict[str, Stamp] = {}
    bad: set[str] = set()
    for line in note.read_text(errors="replace").splitlines() if note.is_file() else ():
        size, changed, verdict, file = (line.split("\t", 3) + [""] * 4)[:4]
        if file and size.isdigit() and changed.isdigit():
            known[file] = (int(size), int(changed))
            (bad.discard if verdict == INGESTED else bad.add)(file)
    return known, bad


def write_known(note: Path, file: str, stamp: Stamp, reason: str) -> None:
    """Add a file to the note, with what became of it."""
    with note.open("a") as stream:
        stream.write(f"{stamp[0]}\t{stamp[1]}\t{' '.join(reason.split()) or INGESTED}\t{file}\n")


def check_camera(space: Workspace) -> None:
    """Raise `BadInput` where files are dropped and nobody said of which camera they are."""
    top = find_folder(space)
    if not space.settings.lap.drop_camera and any(True for folder, _ in walk_folders(top) for _ in list_frames(folder)):
        raise BadInput(f"files lie in {top}, but lap.drop_camera is not set: name their camera in lap.yaml")
