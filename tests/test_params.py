"""Settings: one form for the command line, programs and the page."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest

from specstream import params
from specstream.cli import options
from specstream.params import METHODS, Sampling, Streaming
from ui import api
from ui.components import controls


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


HUGE = {"long": 10**400, "negative": -(10**400), "float": 1e308, "inf": float("inf"), "nan": float("nan")}


def test_one_stop_string_is_one_and_none_is_none() -> None:
    assert Sampling(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert Sampling(stop=None).stop == Sampling(stop="").stop == ()  # type: ignore[arg-type]
    assert params.configure("standard", {"stop": ["a", "", "b"]})[1].stop == ("a", "b")
    for wrong in (5, [5], {"END": 1}, b"END"):
        with pytest.raises(ValueError, match="Stop strings must be"):
            Sampling(stop=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
def test_a_number_of_any_size_is_refused_in_one_sentence(value: float) -> None:
    for name in ("seed", "temperature", "budget"):
        with pytest.raises(ValueError, match=r"must be a (whole )?number from .{,80}\.$"):
            params.configure("streaming", {name: value})
    with pytest.raises(ValueError, match="must be a whole number from 1 to"):
        controls.whole(value, "Prompts", 1000)


def test_an_emptied_field_is_called_empty() -> None:
    for name in ("seed", "temperature", "budget"):
        with pytest.raises(ValueError, match=r", not empty\.$"):
            params.configure("streaming", {name: None})


def test_every_setting_has_its_words_and_an_option() -> None:
    @options.sampling_options
    @options.method_options
    def command(**_: object) -> None: ...

    options_ = {p.name for p in click.command(command).params}
    for f in (f for kind in (Sampling, *METHODS.values()) for f in fields(kind)):
        assert f.metadata["label"] and f.metadata["help"] and f.name in options_
