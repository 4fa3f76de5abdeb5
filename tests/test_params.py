"""Settings: one form for the command line, programs and the page."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest

from specstream import params
from specstream.cli import options
from specstream.params import METHODS, Sampling, Streaming
from ui import api


def test_a_method_and_its_settings_are_said_alike_on_the_command_line_and_by_programs() -> None:
    want = Streaming(budget=12, pause=0), Sampling(seed=3, stop=("x",))
    assert params.configure("streaming:budget=12", {"pause": 0, "seed": 3, "stop": ("x",)}) == want
    assert api.split("streaming:budget=12", {"pause": 0, "seed": 3, "stop": ["x"]}) == want
    assert options.chosen_method("streaming:budget=12", {"pause": 0, "depth": None, "longest": 4}) == want[0]


def test_settings_beside_the_name_come_first() -> None:
    assert params.configure("streaming:budget=12", {"budget": 3})[0] == Streaming(budget=12)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("magic:budget=2", {"seed": -1}, "Unknown method 'magic'"),
        ("standard:budget=2", {}, "Standard decoding has no setting budget"),
        ("streaming", {"longest": 2}, "Speculative Streaming has no setting longest"),
        ("streaming", {"seed": -1}, "Seed must be a whole number"),
        ("streaming:budget", {}, "is not a setting"),
        ("streaming", {"name": "x"}, "Speculative Streaming has no setting name"),
    ],
)
def test_what_is_wrong_with_settings_is_one_sentence(name: str, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        params.configure(name, settings)


def test_every_setting_has_its_words_and_an_option() -> None:
    @options.sampling_options
    @options.method_options
    def command(**_: object) -> None: ...

    options_ = {p.name for p in click.command(command).params}
    for f in (f for kind in (Sampling, *METHODS.values()) for f in fields(kind)):
        assert f.metadata["label"] and f.metadata["help"] and f.name in options_
