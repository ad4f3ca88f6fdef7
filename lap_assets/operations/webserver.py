"""The webserver of a repository that runs now: where it is, and asking it to load the partition sets again.

`lap ui` notes its address in the repository folder; whoever makes the partition sets grow asks for a reload and goes on
quietly where none runs (architecture, section 3). Only the standard library: no dagster here.
"""

import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

NOTE = "webserver.json"
TIMEOUT_SECONDS = 60.0  # a reload of 100,000 pairs takes seconds
RELOAD = "mutation { reloadWorkspace { __typename ... on PythonError { message } } }"
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""


def note_webserver(root: Path, url: str) -> None:
    """Write down where the webserver of a repository listens."""
    place = find_note(root)
    fresh = place.with_name(f"{NOTE}.{os.getpid()}")
    fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    fresh.replace(place)


def forget_webserver(root: Path) -> None:
    """Take the note away, if it is ours."""
    with suppress(OSError, ValueError):
        if json.loads(find_note(root).read_text())["pid"] == os.getpid():
            find_note(root).unlink()


def find_webserver(root: Path) -> str:
    """Address of the webserver, as noted; empty where none is."""
    try:
        return str(json.loads(find_note(root).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_note(root: Path) -> Path:
    """Where the note lies."""
    return root / "dagster" / NOTE


def reload_definitions(root: Path, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Let a running webserver load the definitions again; whether one did. Quiet where none runs."""
    url = find_webserver(root)
    return bool(url) and ask(url, RELOAD, timeout).get("reloadWorkspace", {}).get("__typename") == "Workspace"


def is_broken(url: str) -> bool | None:
    """Whether a code location could not be reached or loaded; None where the webserver does not answer."""
    entries = ask(url, LOCATIONS, 10.0).get("workspaceOrError", {}).get("locationEntries")
    if not entries:
        return None
    return any((one["locationOrLoadError"] or {}).get("__typename") == "PythonError" for one in entries)


def ask(url: str, query: str, timeout: float) -> dict[str, Any]:
    """Data of a GraphQL query; empty where nobody answers, or with errors."""
    body = json.dumps({"query": query}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 is nobody's proxy's business
    try:
        request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
        with opener.open(request, timeout=timeout) as answer:
            return json.load(answer).get("data") or {}
    except (urllib.error.URLError, OSError, ValueError):
        return {}
