"""The named endpoints as programs use them: the examples in docs/api.md run, and so do the tools of the MCP server."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from scripts.ports import free_port
from specstream.params import METHODS, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.conftest import Pace
from ui import app
from ui.access_rules import DEMO, OPEN, Rules
from ui.jobs.engine_host import Engines

pytestmark = pytest.mark.timeout(240)
GUIDE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
FORM = "multipart/form-data; boundary=x"
UPLOAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nsome text\r\n--x--\r\n'
LONG = {"max_new_tokens": 500, "ignore_eos": True}  # several updates, on a quick machine too
ADDRESS = "http://127.0.0.1:7860"
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}


def serve(folder: Path, rules: Rules = OPEN, **options: Any) -> Any:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(0.002), rules)
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    page = app.build(engines, RunLog(folder / "runs.db"))
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options(rules) | options)
    return page


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    page = serve(tmp_path_factory.mktemp("log"))
    yield page.local_url.rstrip("/")
    page.close()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.+?)```", GUIDE, re.DOTALL))
def test_the_guides_examples_run(url: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ADDRESS in code
    exec(compile(code.replace(ADDRESS, url), "docs/api.md", "exec"), {})
    loaded, *told = capsys.readouterr().out.strip().splitlines()
    assert "Loaded as API" in loaded and "".join(told).strip()


def test_the_guides_shell_lines_run(url: str) -> None:
    first, second = re.findall(r"^curl .+?(?=^curl|^```)", GUIDE, re.DOTALL | re.MULTILINE)
    event = re.search(r'"event_id":"(\w+)"', shell(first, url))
    assert event
    told = shell(second.replace("EVENT_ID", event[1]), url)
    assert "event: complete" in told and '"verdict"' in told


def shell(line: str, url: str) -> str:
    done = subprocess.run(
        line.replace(ADDRESS, url), shell=True, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_every_endpoint_is_documented(url: str) -> None:
    endpoints = Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    named = set(re.findall(r"^\| `(/\w+)`", GUIDE, re.MULTILINE))
    assert set(endpoints) == named
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name


def test_a_stream_grows_to_what_generate_gives(url: str, pace: Pace) -> None:
    client = Client(url, verbose=False)
    pace.factor = 10  # the run takes seconds: on a busy machine too its text is seen before its end
    states = list(client.submit("Text: The", settings=LONG, api_name="/stream"))
    texts = [state["text"] for state in states]
    assert len(texts) > 1 and all(later.startswith(text) for text, later in zip(texts, texts[1:], strict=False))
    pace.factor = 1
    whole = client.predict("Text: The", settings=LONG, api_name="/generate")
    assert texts[-1] == whole["text"] and whole["verdict"]["agreement"] == "identical"


def test_settings_name_what_generate_takes(url: str) -> None:
    known = Client(url, verbose=False).predict(api_name="/settings")
    assert set(known["methods"]) == set(METHODS) and known["tasks"]["e2e"]
    assert known["sampling"]["temperature"]["max"] == 5
    assert known["methods"]["streaming"]["settings"]["budget"]["default"] == Streaming().budget


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "The prompt must be a text, not null."),
        ([None], "The prompt must be a text, not null."),
        ([7], "The prompt must be a text, not 7."),
        (["Hi", None], "The task must be a text, not null."),
        (["Hi", "poems"], "Unknown task 'poems'"),
        (["Hi", "raw", ["streaming"]], 'The method must be a text, not ["streaming"].'),
        (["Hi", "raw", "magic"], "Unknown method 'magic'"),
        (["Hi", "raw", "streaming", 5], "The settings must be an object of names and values, not 5."),
        (["Hi", "raw", "streaming", {"name": "x"}], "Speculative Streaming has no setting name."),
        (["Hi", "raw", "streaming", {"temprature": 1}], "has no setting temprature"),
        (["Hi", "raw", "streaming", {"temperature": "hot"}], "Temperature must be a number from 0 to 5"),
        (["Hi", "raw", "streaming", {"max_new_tokens": 10**400}], "Max new tokens must be a whole number"),
        (["Hi", "raw", "streaming", {"ignore_eos": "no"}], "Ignore end of text must be true or false"),
        (["Hi", "raw", "streaming", {"stop": "x"}], "Stop strings must be a list of texts"),
        (["Hi", "raw", "streaming", None, "yes"], 'Compare must be true or false, not "yes".'),
    ],
)
def test_a_call_that_cannot_be_made_says_in_one_sentence_why(
    url: str, arguments: list[Any], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = f"{url}/gradio_api/call/generate"
    body = json.dumps({"data": arguments}).encode()
    with urllib.request.urlopen(urllib.request.Request(endpoint, body, {"Content-Type": "application/json"})) as call:
        event = json.load(call)["event_id"]
    with urllib.request.urlopen(f"{endpoint}/{event}") as answer:
        told = answer.read().decode()
    assert "event: error" in told
    said = json.loads(told.rsplit("data: ", 1)[1])["error"]
    assert sentence in said and "\n" not in said
    assert "Traceback" not in capfd.readouterr().err


def test_a_demo_caps_the_runs_of_programs_too(tmp_path: Path) -> None:
    page = serve(tmp_path, DEMO)
    client = Client(page.local_url, verbose=False)
    with pytest.raises(Exception, match="at most 256 new tokens"):
        client.predict("Hi", settings={"max_new_tokens": 257}, api_name="/generate")
    assert client.predict("Hi", settings={"max_new_tokens": 9}, api_name="/generate")["text"]
    request = urllib.request.Request(page.local_url + "gradio_api/upload", UPLOAD, {"Content-Type": FORM})
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request)
    page.close()


def test_the_endpoints_are_tools_of_an_mcp_server(tmp_path: Path) -> None:
    page = serve(tmp_path, mcp_server=True)
    with ThreadPoolExecutor(1) as alone:  # beside a browser, whose event loop is the main thread's
        schemas, answer = alone.submit(asyncio.run, call_tool(page.local_url + "gradio_api/mcp/")).result()
    page.close()
    tools = {name.split("_")[-1]: schema["properties"] for name, schema in schemas.items()}
    assert set(tools) == {"generate", "stream", "model", "settings"}
    assert all(argument["description"] for arguments in tools.values() for argument in arguments.values())
    assert "'agreement': 'identical'" in answer.replace('"', "'")


async def call_tool(url: str) -> tuple[dict[str, Any], str]:
    """The tools by name with their arguments, and the answer of the one that generates."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name: tool.inputSchema for tool in (await session.list_tools()).tools}
        generate = next(name for name in tools if name.endswith("generate"))
        answer = await session.call_tool(generate, {"prompt": "Text: The", "settings": {"max_new_tokens": 12}})
        return tools, " ".join(part.text for part in answer.content)
