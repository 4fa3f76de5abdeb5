"""Replays the Dockerfile and the start of a Space in a bare Debian, without Docker. Needs root on Linux.

    debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates bookworm ROOT
    python -m scripts.container ROOT [--port 7860] [--bind FOLDER]... [--toy] [--again]

Debian's own Python 3.11 replaces the image python:3.11-slim. The instructions are read from the Dockerfile. The app is
then started as its user with the variables that a Space sets, and one prompt is run through the API once its layers are
compiled. PIP_* variables of this environment are passed on; --bind mounts a folder inside, such as a mirror that they
name. The exit status is 1 if anything differs from what is expected.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import click

PROJECT = Path(__file__).resolve().parents[1]
SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "someone/playground",
    "SPACE_HOST": "someone-playground.hf.space",
    "GRADIO_SERVER_NAME": "0.0.0.0",
}
PROMPT = "name[The Salted Fig], eatType[pub], area[riverside]"
USER_ID = 1000
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WAIT = 600.0  # seconds until the page answers, and until the model is loaded


@dataclass
class Container:
    """A folder that serves as root filesystem, and the settings of the Dockerfile so far."""

    root: Path
    binds: tuple[str, ...] = ()
    user: str = "root"
    workdir: str = "/"
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "LANG": "C.UTF-8"})

    def command(self, words: list[str], **more: str) -> list[str]:
        """The command that runs ``words`` inside, with mounts that disappear when it ends."""
        inside = shlex.join(["chroot", f"--userspec={self.user}", str(self.root), *self._environment(more), *words])
        mounts = [f"mount -t proc proc {self.root}/proc", f"mount --rbind /dev {self.root}/dev"]
        for folder in self.binds:
            (self.root / folder.strip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {folder} {self.root}{folder}")
        return ["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, f"exec {inside}"])]

    def _environment(self, more: dict[str, str]) -> list[str]:
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        told = self.env | pip | more
        return ["env", "-i", f"--chdir={self.workdir}", *(f"{name}={value}" for name, value in told.items())]

    def run(self, script: str) -> str:
        """Run a shell script inside and return its output. Raises ClickException if it fails."""
        done = subprocess.run(self.command(["/bin/sh", "-ec", script]), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise click.ClickException(f"It ended with {done.returncode}: {script}")
        return done.stdout

    def step(self, keyword: str, rest: str) -> None:
        """Execute one instruction of a Dockerfile; those that only describe the image are ignored."""
        if keyword == "RUN":
            self.run(rest)
        elif keyword == "ENV":
            for word in shlex.split(Template(rest).safe_substitute(self.env)):
                name, _, value = word.partition("=")
                self.env[name] = value
        elif keyword == "USER":
            self.user = rest
        elif keyword == "WORKDIR":
            self.workdir = Template(rest).safe_substitute(self.env)
            folder = self.root / self.workdir.strip("/")
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, USER_ID, USER_ID)  # BuildKit leaves it owned by root, which works too
        elif keyword == "COPY":
            self._copy(shlex.split(rest)[1])

    def _copy(self, source: str) -> None:
        for name in context() if source == "." else [source]:
            target = self.root / self.workdir.strip("/") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target)
        for path in (self.root / self.workdir.strip("/")).rglob("*"):
            os.chown(path, USER_ID, USER_ID)


def instructions() -> Iterator[tuple[str, str]]:
    """Keyword and arguments of every instruction of the Dockerfile, with continued lines joined."""
    lines = (PROJECT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        keyword, _, rest = line.partition(" ")
        yield keyword, rest.strip()


def context() -> list[str]:
    """The build context: the files of the repository that .dockerignore does not exclude."""
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    patterns = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    return [name for name in tracked.splitlines() if not ignored(name, patterns)]


def ignored(name: str, patterns: list[str]) -> bool:
    """Whether a file, or a folder that contains it, matches a pattern of .dockerignore."""
    places = [Path(name), *Path(name).parents]
    return any(
        fnmatch.fnmatch(place.name, p[3:]) if p.startswith("**/") else fnmatch.fnmatch(str(place), p.strip("/"))
        for place in places
        for p in patterns
    )


def prepare(root: Path) -> None:
    """Add what a Python image has and a bare Debian lacks: the name python, and permission for pip to install."""
    for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    if not (root / "usr/bin/python").exists():
        (root / "usr/bin/python").symlink_to("python3")
    for file in (
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/ssl/certs/ca-certificates.crt",
    ):  # this machine's network configuration
        shutil.copy(file, root / file.strip("/"), follow_symlinks=True)


@contextmanager
def started(container: Container, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(container.command(words, **SPACE), start_new_session=True)
    try:
        yield program
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGTERM)
        program.wait()


def asked(url: str, program: subprocess.Popen[bytes], compiled: bool) -> dict[str, Any]:
    """The API's answer to a prompt, once the model is loaded and, if ``compiled``, its layers run compiled."""
    from gradio_client import Client

    end = time.monotonic() + WAIT
    while True:
        try:
            client = Client(url, verbose=False)
            if error := client.predict(api_name="/model")["error"]:
                raise click.ClickException(error)
            answer = client.predict(PROMPT, task="e2e", settings={"max_new_tokens": 40}, api_name="/generate")
            model = client.predict(api_name="/model")
            if model["info"]["compiled"] or not compiled:
                return {"model": model, "answer": answer}
            trouble = f"The layers are not compiled: {model['info']['compiling']}"
        except Exception as error:  # not yet served, or not yet loaded
            if isinstance(error, click.ClickException) or program.poll() is not None:
                raise
            trouble = str(error)
        if time.monotonic() > end:
            raise click.ClickException(trouble)
        time.sleep(2)


@click.command(help=__doc__.splitlines()[0])
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", default=7860, show_default=True)
@click.option("--bind", "binds", multiple=True, help="A folder to mount inside.")
@click.option("--toy", is_flag=True, help="Start the app with --toy.")
@click.option("--again", is_flag=True, help="Skip the RUN instructions, which have already been run in ROOT.")
def main(root: Path, port: int, binds: tuple[str, ...], toy: bool, again: bool) -> None:
    container, start = Container(root.resolve(), binds), time.monotonic()
    prepare(container.root)
    command: list[str] = []
    for keyword, rest in instructions():
        click.echo(f"{time.monotonic() - start:6.0f} s  {keyword} {rest}")
        if keyword == "CMD":
            command = json.loads(rest)
        if not (again and keyword == "RUN"):
            container.step(keyword, rest)
    seen = container.run("id -u; python --version; command -v g++ || :")
    click.echo(f"Inside: {', '.join(seen.split())}")
    with started(container, [*command, "--port", str(port), *(["--toy"] if toy else [])]) as program:
        found = asked(f"http://127.0.0.1:{port}", program, compiled=not toy)
    info, answer = found["model"]["info"], found["answer"]
    click.echo(f"{info['model']} from {info['source']}, {info['dtype']}")
    click.echo(f"{answer['text']!r}\n{json.dumps(answer['verdict'])}")
    raise SystemExit(0 if seen.split()[0] == str(USER_ID) and answer["verdict"]["agreement"] == "identical" else 1)


if __name__ == "__main__":
    main()
