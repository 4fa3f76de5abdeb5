"""The first visitor's tour: it reaches every stage on the toy model, and gives one sentence if it can't start."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from tests.browsing import MARKS, SLOW, served  # sets the environment of gradio

# isort: split
from playwright.sync_api import Browser

from scripts import tour
from scripts.ports import free_port


def test_a_page_that_is_not_served_is_told_in_a_sentence() -> None:
    with pytest.raises(click.ClickException, match="does not answer: is the page served there"):
        tour.answered(f"http://127.0.0.1:{free_port()}/", 0.2)
    refused = CliRunner().invoke(tour.main, ["--command", "make run"])
    assert refused.exit_code == 2 and "--command needs --url" in refused.output


class TestBrowser:
    pytestmark = MARKS

    def test_the_tour_reaches_a_comparison_that_opens_from_the_disk(self, browser: Browser) -> None:
        with served(None) as url:
            reached = list(tour.tour(browser, url, 1280, 2 * SLOW / 1000))
        assert [words for words, _ in reached][-2:] == [
            "the file to share is saved", "and opened from the disk, without the page",
        ]  # fmt: skip
        assert len(reached) == 9 and [at for _, at in reached] == sorted(at for _, at in reached)
