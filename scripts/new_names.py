"""Prompts of the task e2e with names that the data doesn't have: a model that only ever saw a few dozen restaurants
drafts badly for others.

python -m scripts.new_names e2e/train.jsonl mixed.jsonl --count 4000 --seed 0
Writes every different prompt of the data, then COUNT of them with other names. They have no references: train on them
with --targets self.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import click

from specstream.data.datasets import read_rows

# The words of the patterns below, by their letter.
WORDS = {
    "a": (
        "Amber Ancient Ashen Autumn Black Blue Brass Bright Broken Coastal Copper Corner Crimson Crooked Crystal "
        "Dancing Eastern Electric Emerald Fallen Fiery Forest Garden Gentle Gilded Golden Grand Green Happy Harbour "
        "Hidden Honest Hungry Iron Ivory Jolly Laughing Little Lost Lucky Marble Merry Midnight Misty Moonlit "
        "Northern Old Olive Orchard Painted Pepper Proud Purple Quiet Red River Rolling Rosy Royal Rustic Sapphire "
        "Scarlet Secret Silent Silver Singing Sleepy Snowy Southern Spotted Spring Stone Summer Sunny Sweet Tall "
        "Thirsty Twisted Velvet Village Violet Wandering Western White Wicked Wild Winter Wooden Yellow"
    ),
    "b": (
        "Acorn Anchor Apple Badger Barn Barrel Basil Bear Bell Boar Bottle Bridge Candle Castle Cat Cedar Cellar "
        "Chestnut Clover Compass Cottage Crane Crow Crown Deer Dolphin Dove Dragon Falcon Feather Fig Fork Fountain "
        "Fox Gate Goat Goose Hare Hart Heron Hill Horse Kettle Kitchen Lamb Lantern Lemon Lighthouse Lily Lion Magpie "
        "Maple Market Moon Oak Oven Owl Peacock Pear Pelican Pine Plum Pony Quail Rabbit Raven Robin Rose Saffron "
        "Sail Ship Sparrow Spoon Stag Star Swan Table Tavern Teapot Thistle Tiger Tower Trout Turtle Whale Wheel "
        "Willow Wolf"
    ),
    "p": (
        "Adele Anand Bruno Carmen Chen Dimitri Elena Farah Giorgio Hana Ines Ivan Jasper Kenji Lola Luca Marco Mei "
        "Nadia Omar Paolo Priya Rosa Sami Sofia Tariq Uma Viktor Wanda Yuki"
    ),
    "q": (
        "Andalucia Athena Bombay Capri Delhi Florence Hanoi Istanbul Jaipur Kyoto Lisbon Lyon Madras Milano Napoli "
        "Osaka Palermo Roma Saigon Sevilla Siena Toscana Valencia Venezia Verona Yunnan"
    ),
}
PATTERNS = ("The {a} {b}", "{a} {b}", "The {b}", "{p}'s", "{p}'s {b}", "{b} & {c}", "The {b} and {c}", "Café {q}",
            "{q} House", "Taste of {q}", "Bar {p}", "{q}", "{a} {b} Inn", "{p}'s Kitchen")  # fmt: skip


def name(rng: random.Random) -> str:
    """A name that a restaurant might have."""
    words = {letter: rng.choice(WORDS["b" if letter == "c" else letter].split()) for letter in "abcpq"}
    return rng.choice(PATTERNS).format(**words)


def renamed(meaning: str, rng: random.Random) -> str:
    """A meaning representation with another name, and another place that it is near to."""
    return re.sub(r"\b(name|near)\[[^\]]*\]", lambda found: f"{found[1]}[{name(rng)}]", meaning)


@click.command(help=__doc__.splitlines()[0], context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--count", default=4000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(source: Path, target: Path, count: int, seed: int) -> None:
    known = list(dict.fromkeys(row["meaning_representation"] for _, row in read_rows(source)))
    rng = random.Random(seed)
    new = [renamed(rng.choice(known), rng) for _ in range(count)]
    lines = (json.dumps({"meaning_representation": m}, ensure_ascii=False) for m in (*known, *new))
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
